"""pyproject.toml and constraints.txt: a reason for each dependency, bounds, and one version of everything."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
INNER_NAMES = {
    "pyfuse3": ("snapfs/fuse/kernel/request_reader.py", 'vars(pyfuse3)["trio"]'),
    "trio": ("tests/fakes/leaks.py", '"Trio thread"'),
    "msgspec": ("snapfs/base/**/*.py", '"Object contains unknown field"'),
    "tomlkit": ("snapfs/base/**/*.py", "already exists"),
    "click": ("snapfs/base/commandline.py", "from click.shell_completion import shell_complete"),
    "prometheus-client": ("replicator/**/*.py", "from prometheus_client.metrics import disable_created_metrics"),
    "aiohttp": ("replicator/mirror/connection_limits.py", '"_request_count"'),
    "obstore": ("snapfs/store/bucket/bucket_client.py", '"NoSuchBucket" in str(error)'),
}
"""What is not a documented interface of a dependency, and where it is used: a later major version may change it."""


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)  # type: ignore[arg-type]


def requirements(*extras: str) -> list[Requirement]:
    return [
        Requirement(text) for text in [*PROJECT["dependencies"], *(each for name in extras for each in EXTRAS[name])]
    ]


@pytest.mark.parametrize("needed", requirements("test", "demo", "package"), ids=lambda needed: needed.name)
def test_each_dependency_of_tests_demo_and_package_is_locked_within_its_bounds(needed: Requirement) -> None:
    assert needed.specifier.contains(pinned()[canonicalize_name(needed.name)], prereleases=True)


@pytest.mark.parametrize("name", INNER_NAMES)
def test_what_uses_an_inner_name_has_an_upper_bound(name: str) -> None:
    pattern, used = INNER_NAMES[name]
    assert any(used in path.read_text() for path in ROOT.glob(pattern))
    (needed,) = (each for each in requirements() if each.name == name)
    assert any(each.operator == "<" for each in needed.specifier)


def test_each_dependency_has_a_reason() -> None:
    lines = [
        line.strip()
        for line in TEXT.partition("[project.scripts]")[0].splitlines()
        if re.match(r'\s+"[\w.\[\]-]+[<>=,.\d]*",', line)
    ]
    listed = requirements(*EXTRAS)
    assert len(lines) >= len(listed)
    assert [line for line in lines if "# " not in line] == []


def test_setup_installs_the_locked_versions() -> None:
    assert "--constraint constraints.txt" in (ROOT / "tools/setup").read_text()
    head = (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert re.search(r"with Python (3\.\d+):", head)[1] == PROJECT["requires-python"].removeprefix(">=")  # type: ignore[index]


def imported(*folders: str) -> set[str]:
    """The distributions whose modules the Python files of these folders import."""
    tops: set[str] = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                tops.add(node.module.partition(".")[0])
    known = packages_distributions()
    others = tops - sys.stdlib_module_names - {"snapfs", "replicator", "tests"}
    return {canonicalize_name(known[top][0]) for top in others if top in known}


@pytest.mark.parametrize(("folders", "extras"), [(("snapfs", "replicator"), ()), (("tests",), ("test",))])
def test_what_is_imported_is_declared(folders: tuple[str, ...], extras: tuple[str, ...]) -> None:
    declared = {canonicalize_name(needed.name) for needed in requirements(*extras)}
    with_boto = declared | {"botocore"} if "boto3" in declared else declared  # one release of the two
    assert imported(*folders) - with_boto == set()


def test_each_dependency_is_imported() -> None:
    declared = {canonicalize_name(needed.name) for needed in requirements()}
    assert declared - imported("snapfs", "replicator") == set()
