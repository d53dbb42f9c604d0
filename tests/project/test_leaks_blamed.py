"""A test that leaves something open fails itself, and no test after it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
INNOCENT = """

def test_innocent():
    [[] for _ in range(10)]
"""
FAILS_WITH_PIPES = """
import subprocess

def test_guilty():
    left = [subprocess.Popen("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in left:
        process.kill()
        process.wait()
    assert not left
"""
LEAVES_A_CYCLE = """
class Kept:
    pass

def test_guilty(tmp_path):
    kept = Kept()
    kept.itself, kept.file = kept, open(tmp_path / "file", "w")
"""


@pytest.mark.parametrize(
    ("guilty", "counts"),
    [(FAILS_WITH_PIPES, "1 failed, 1 passed, 1 error"), (LEAVES_A_CYCLE, "2 passed, 1 error")],
    ids=["pipes of a failed test", "a cycle"],
)
def test_the_test_that_leaks_is_the_one_that_fails(tmp_path: Path, guilty: str, counts: str) -> None:
    script = (tmp_path / "story").with_suffix(".py")
    script.write_text(guilty + INNOCENT)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:xdist",
         "-c", ROOT / "pyproject.toml", f"--basetemp={tmp_path / 'base'}", script],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=ROOT,
    )  # fmt: skip
    assert counts in done.stdout, done.stdout + done.stderr
    assert "ERROR" in done.stdout
    assert "test_innocent" not in done.stdout.partition("short test summary")[2]
