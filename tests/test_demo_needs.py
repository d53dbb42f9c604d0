"""What tools/demo needs, its setup installs; and a child of it that dies is reported with its own last words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.hosts import FailedError, Host

ROOT = Path(__file__).resolve().parent.parent
OWN = {"snapfs", "replicator", "tests", "demo_failover", "demo_promises"}


def imported(path: Path, seen: set[Path]) -> set[str]:
    """The packages that a file and what it imports of tests/ and tools/ import, anywhere."""
    seen.add(path)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            found.add(name.partition(".")[0])
            for inner in (ROOT / f"{name.replace('.', '/')}.py", ROOT / "tools" / f"{name}.py"):
                if inner.exists() and inner not in seen and not name.startswith(("snapfs", "replicator")):
                    found |= imported(inner, seen)
    return found


def test_the_demo_imports_only_what_its_setup_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["demo"]]
    installed = {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in required}  # type: ignore[index]
    # Started as a program of its own, by its path.
    files = [ROOT / "tools/demo_story.py", ROOT / "tests/fakes/replication/ledger.py"]
    needed = set().union(*(imported(path, set()) for path in files)) - set(sys.stdlib_module_names) - OWN
    assert needed <= installed
    assert "psycopg" in needed
    assert re.search(r'setup" --demo$', (ROOT / "tools/demo").read_text(), re.MULTILINE)


def test_ci_runs_the_demo_in_a_fresh_clone_before_the_tests() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if "$clone/snapfs/tools/demo" in line)
    assert lines[-1] == "tools/test --checked"
    assert any("git clone" in line for line in lines[:first])
    started = next(at for at, line in enumerate(lines) if line.startswith("demo >"))
    waited = next(at for at, line in enumerate(lines) if line.startswith("wait $!"))
    assert first < started < waited < len(lines) - 1


def test_a_child_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    host = Host("host-a", tmp_path, "", "")
    child = host.start(sys.executable, "-c", "import sys; sys.exit('no module named psycopg')")
    try:
        child.wait(PATIENCE_S)
        with pytest.raises(FailedError, match="the client ended with exit code 1: no module named psycopg"):
            host.check_lives(child, "the client")
    finally:
        host._started.clear()
    alive = host.start(sys.executable, "-c", "import time; time.sleep(60)")
    host.check_lives(alive, "the client")
    host.end(alive)
    assert isinstance(alive, subprocess.Popen)
