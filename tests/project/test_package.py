"""The Debian package in short: what it lays out is what the project ships, and each of its parts names what is there.

The target `files` of packaging/debian/rules is made as in the build, with a stand-in for pandoc. The build as a whole
is tools/package; tools/package_check/run installs it in a fresh Debian and boots that.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.fakes.patience import PATIENCE_S
from tests.project.project_files import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
RULES = ROOT / "packaging/debian/rules"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNITS = sorted(path.name for path in (ROOT / "systemd").glob("*.service"))
LICENCES = SimpleNamespace(**runpy.run_path(str(ROOT / "packaging/wheel_licences.py"), run_name="licences"))
PAGE_IN_A_UNIT = re.compile(r"^Documentation=man:([\w-]+)\((\d)\)$", re.MULTILINE)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the package, without its Python environment."""
    folder = tmp_path_factory.mktemp("package")
    pandoc = folder / "bin/pandoc"
    pandoc.parent.mkdir()
    pandoc.write_text('#!/bin/sh\nfor page; do :; done\nexec cat "$page"\n')
    pandoc.chmod(0o755)
    environment = {**os.environ, "PATH": f"{pandoc.parent}:{os.environ['PATH']}"}
    command = ["make", "-s", "-f", RULES, "files", f"TOP={folder / 'top'}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=PATIENCE_S)
    return folder / "top"


def unit(top: Path, name: str) -> str:
    return (top / "lib/systemd/system" / name).read_text()


def test_it_lays_out_what_the_project_ships(top: Path) -> None:
    found = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file() or path.is_symlink()}
    pages = {path.name.removesuffix(".md") for path in (ROOT / "docs").glob("*.[157].md")}
    assert found == {
        *(f"lib/systemd/system/{name}" for name in UNITS),
        *(f"usr/share/man/man{page[-1]}/{page}" for page in pages),
        *(f"usr/share/doc/snapfs/examples/monitoring/{path.name}" for path in (ROOT / "monitoring").iterdir()),
        *(f"etc/snapfs/{path.name}" for path in (ROOT / "systemd").glob("*.env")),
        "etc/logrotate.d/snapfs", "usr/lib/sysusers.d/snapfs.conf", "usr/lib/tmpfiles.d/snapfs.conf",
        "sbin/mount.fuse.snapfs", "sbin/umount.fuse.snapfs",
        "usr/share/man/man8/mount.fuse.snapfs.8", "usr/share/man/man8/umount.fuse.snapfs.8",
    }  # fmt: skip
    shipped = {path.name for path in (ROOT / "systemd").iterdir()}
    named = {Path(path).name for path in found} | {"snapfs.sysusers", "snapfs.tmpfiles", "snapfs.logrotate"}
    assert shipped <= named, "a file in systemd/ that the package does not have"


def test_each_program_of_the_project_is_on_the_path_with_its_completion() -> None:
    laid = re.findall(r"^\t\$\(call program,([\w-]+),([\w.]+)\)$", RULES.read_text(), re.MULTILINE)
    assert {name: f"{module}:main" for name, module in laid} == PROJECT["scripts"]
    assert all(f"$(RUN) $(PRIVATE)/bin/$(1) >$(TOP)/usr/share/{shell}" in RULES.read_text() for shell in SHELLS)


SHELLS = ("bash-completion", "zsh", "fish")


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_names_what_the_package_or_a_package_that_it_needs_has(name: str, top: Path) -> None:
    text = unit(top, name)
    programs = set(re.findall(r"^Exec\w+=[-@:+!]*(\S+)", text, re.MULTILINE))
    assert programs <= {"/usr/bin/snapfs", "/usr/bin/snapfs-replicator", "/bin/kill"}
    assert "/bin/kill" not in programs or "procps" in (ROOT / "packaging/debian/control").read_text()
    pages = PAGE_IN_A_UNIT.findall(text)
    assert pages
    assert all((top / f"usr/share/man/man{section}/{page}.{section}").is_file() for page, section in pages)
    assert "/usr/local" not in text


def test_the_settings_that_the_units_read_are_conffiles(top: Path) -> None:
    read = {path for name in UNITS for path in re.findall(r"EnvironmentFile=-?(/etc/\S+)", unit(top, name))}
    assert read == {"/etc/snapfs/%i.env", "/etc/snapfs/agent.env", "/etc/snapfs/mirror.env"}
    for name in UNITS:
        text = unit(top, name)
        used = set(re.findall(r"\$\{?([A-Z]+)", "\n".join(re.findall(r"^Exec.*", text, re.MULTILINE)))) - {"MAINPID"}
        given = set(re.findall(r"^Environment=(\w+)=", text, re.MULTILINE))
        for path in re.findall(r"EnvironmentFile=-?(/etc/[\w/]+\.env)", text):
            given |= set(re.findall(r"^(\w+)=", (top / path.removeprefix("/")).read_text(), re.MULTILINE))
        assert used - given <= {"VOLUME", "MOUNTPOINT"}, name


def test_the_user_of_a_unit_is_made_and_owns_its_folder(top: Path) -> None:
    (user,) = {user for name in UNITS for user in re.findall(r"^User=(\S+)", unit(top, name), re.MULTILINE)}
    assert f"u {user} " in (top / "usr/lib/sysusers.d/snapfs.conf").read_text()
    (line,) = re.findall(
        rf"^d (/\S+) (\d+) {user} {user} -$", (top / "usr/lib/tmpfiles.d/snapfs.conf").read_text(), re.M
    )
    assert line == (f"/var/lib/{user}", "0700")
    assert f"--root {line[0]} " in unit(top, "snapfs-replicator.service")


def test_what_removal_leaves_is_never_removed() -> None:
    """No script of the package removes a volume, a mirror, or what people put into /etc/snapfs."""
    for path in sorted((ROOT / "packaging/debian").glob("snapfs.p*")):
        for words in re.findall(r"\brm (.*)", path.read_text()):
            assert words == "-rf /var/log/snapfs", path.name


@pytest.mark.parametrize("path", sorted((ROOT / "packaging/debian").glob("snapfs.p*")), ids=lambda path: path.name)
def test_a_script_of_the_package_is_one_that_sh_can_run(path: Path) -> None:
    done = subprocess.run(["sh", "-n", path], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert "#DEBHELPER#" in path.read_text()


def test_the_copyright_file_points_to_the_common_licences() -> None:
    text = (ROOT / "packaging/debian/copyright").read_text()
    assert f"License: {PROJECT['license']['text']}\n" in text
    assert "/usr/share/common-licenses/Apache-2.0" in text


def needed(names: list[str]) -> set[str]:
    """The distributions that are installed for these requirements, also indirectly."""
    found: set[str] = set()
    open_ends = [Requirement(name) for name in names]
    while open_ends:
        each = open_ends.pop()
        name = canonicalize_name(each.name)
        if name in found or (each.marker is not None and not each.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        open_ends += [Requirement(text) for text in importlib.metadata.requires(name) or []]
    return found


@pytest.mark.parametrize("name", sorted(needed(PROJECT["dependencies"])))
def test_a_bundled_wheel_has_a_licence_and_its_text(name: str) -> None:
    distribution = importlib.metadata.distribution(name)
    folder = Path(str(distribution.locate_file(""))) / Path(str(distribution._path)).name  # type: ignore[attr-defined]
    assert LICENCES.licence_of(distribution.metadata)
    assert LICENCES.texts_of(folder) or (LICENCES.KEPT / f"{name}.txt").is_file()


def package(folder: Path, name: str, licence: str, text: str = "") -> None:
    info = folder / f"{name}-1.dist-info"
    (folder / name).mkdir(parents=True)
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{licence}")
    if text:
        (info / "LICENSE").write_text(text)


def test_the_stanza_of_a_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages = tmp_path / "usr/lib/snapfs/lib/python3/site-packages"
    package(packages, "one", "License-Expression: Apache-2.0\n", "Copyright (c) 2020 One\n")
    package(packages, "obstore", "Classifier: License :: OSI Approved :: MIT License\n")
    assert LICENCES.main(packages) == 0
    said = capsys.readouterr().out
    assert "Files: */site-packages/one/* */site-packages/one-1.dist-info/*\nCopyright: Copyright (c) 2020 One\n" in said
    assert "/usr/lib/snapfs/lib/python3/site-packages/one-1.dist-info/LICENSE\n" in said
    assert "in /usr/share/common-licenses/Apache-2.0." in said
    assert "License: Expat\n" in said
    assert (packages / "obstore-1.dist-info/licenses/LICENSE").read_text().startswith("MIT License")


@pytest.mark.parametrize(
    ("licence", "text", "words"),
    [("", "text", "two has no licence"), ("License: MIT\n", "", "two has no text of its licence")],
)
def test_a_wheel_without_licence_or_text_ends_the_build(licence: str, text: str, words: str, tmp_path: Path) -> None:
    package(tmp_path / "a/b/c", "two", licence, text)
    with pytest.raises(SystemExit, match=f"wheel_licences: {words}$"):
        LICENCES.main(tmp_path / "a/b/c")
