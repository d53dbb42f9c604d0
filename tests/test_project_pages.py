"""The pages for those who build here: what they name exists, the picture is what its script draws."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["CONTRIBUTING.md", *(f"docs/internals/{name}.md" for name in ("architecture", "concurrency", "debugging"))]
_CODE = re.compile(r"`([\w/]+\.(?:py|c)): ([\w.]+)`")
"""A module and a function, class or method in it, as architecture.md names them."""
_SOURCE_FILE = re.compile(r"(?<![\w./*-])((?:[\w-]+/)*[A-Za-z]\w*\.(?:py|c|h))\b")
_TEXTS = ("README.md", "SECURITY.md", "CONTRIBUTING.md", "docs", "packaging", "snapfs", "replicator", "tests", "tools")
_FOREIGN = {
    "sysexits.h", "malloc.h", "linux/fs.h", "linux/pidfd.h", "linux/time.h", "asm/socket.h",
    "include/uapi/linux/fuse.h", "fs/posix_acl.c", "fs/ext4/fsync.c", "fs/fuse/inode.c", "namei.c",
}  # fmt: skip
"""Files of the C library and of the kernel that comments refer to."""
_PATH = re.compile(r"(?<![\w/.-])(?:snapfs|replicator|tests|tools|docs|packaging)/[\w/.*{},-]+")


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    named = [path.rstrip(".,") for path in _PATH.findall((ROOT / page).read_text())]
    assert named
    assert [path for path in named if not any(ROOT.glob(path)) and not (ROOT / path).exists()] == []


def defined(path: Path) -> set[str]:
    """Functions, classes and methods of a module; of a file in C the functions that begin in a line of their own."""
    text = path.read_text()
    if path.suffix == ".c":
        return set(re.findall(r"^\w[^;(\n]*?(\w+)\([^;]*?\{$", text, re.MULTILINE))
    found: set[str] = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def texts() -> Iterator[Path]:
    """All pages, scripts and sources that people read; not what a build or an editor leaves beside them."""
    for name in _TEXTS:
        for path in [ROOT / name, *sorted((ROOT / name).rglob("*"))]:
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".so", ".svg"}:
                yield path


def stale_files(text: str, names: set[str]) -> set[str]:
    """The source files that a text mentions and that are neither in `names` nor known to be of another project."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#include"))
    named = {name for line in lines for name in _SOURCE_FILE.findall(line)}
    return {name for name in named - _FOREIGN if name.rpartition("/")[2] not in names}


def test_every_source_file_that_a_text_mentions_exists() -> None:
    names = {path.name for path in texts()} | {path.name for path in ROOT.glob("*.py")}
    stale: list[str] = []
    for path in texts():
        with contextlib.suppress(UnicodeDecodeError):  # golden files in binary
            stale += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(stale_files(path.read_text(), names))]
    assert stale == []


def test_a_source_file_that_is_gone_is_found() -> None:
    gone = {f"old_tree.{'py'}", f"native/gone.{'c'}"}  # in two parts, as this file is searched, too
    text = "\n".join(["see target.py", f"#include <errno.{'h'}>", "as in linux/fs.h", *gone])
    assert stale_files(text, {"target.py"}) == gone


def campaigns() -> list[Path]:
    """The scripts in Python that a shell starts: campaigns and benchmarks."""
    found = [path for folder in ("chaos", "bench", "fuzz") for path in sorted((ROOT / "tools" / folder).iterdir())]
    return [path for path in found if path.is_file() and path.read_text().startswith("#!/usr/bin/env python3\n")]


@pytest.mark.parametrize("script", campaigns(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_campaign_runs_from_a_plain_shell_and_takes_no_abbreviated_option(script: Path) -> None:
    text = script.read_text()
    assert os.access(script, os.X_OK)
    before, entered, after = text.partition("environment.enter()\n")
    assert entered
    assert not re.search(r"^(from|import) (snapfs|replicator|tests)\b", before, re.MULTILINE)
    assert after.count("ArgumentParser(") == len(re.findall(r"ArgumentParser\(\s*allow_abbrev=False", after))


def test_without_an_environment_a_script_names_the_setup(tmp_path: Path) -> None:
    (tmp_path / "tools" / "chaos").mkdir(parents=True)
    shutil.copy(ROOT / "tools/environment.py", tmp_path / "tools")
    script = shutil.copy(ROOT / "tools/chaos/model", tmp_path / "tools/chaos")
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{script}: there is no {tmp_path}/.venv/bin/python: run tools/setup --test first"
    ]


@pytest.mark.parametrize("thing", ["a WRITE", "a cut", "a push", "a lazy read", "a failover"])
def test_the_architecture_page_says_where_a_thing_lives(thing: str) -> None:
    rows = [
        row
        for row in (ROOT / "docs/internals/architecture.md").read_text().splitlines()
        if row.startswith(f"| {thing}")
    ]
    named = _CODE.findall("\n".join(rows))
    assert len(named) >= 2
    assert [f"{path}: {name}" for path, name in named if name not in defined(ROOT / path)] == []


def test_every_function_that_the_architecture_page_names_exists() -> None:
    named = _CODE.findall((ROOT / "docs/internals/architecture.md").read_text())
    assert [f"{path}: {name}" for path, name in named if name not in defined(ROOT / path)] == []


def test_the_picture_names_folders_that_exist() -> None:
    boxes = runpy.run_path(str(ROOT / "tools/docs/architecture.py"))["BOXES"]
    named = {path for box in boxes for line in box[5] for path in re.findall(r"(?:snapfs|replicator)/\w+", line)}
    assert {path.split("/")[0] for path in named} == {"snapfs", "replicator"}
    assert [path for path in named if not (ROOT / path).is_dir()] == []


def test_the_glossary_fits_in_a_head() -> None:
    rows = [line for line in (ROOT / "docs/glossary.md").read_text().splitlines() if line.startswith("| ")][2:]
    words = [row.split("|")[1].strip() for row in rows]
    assert words == sorted(words, key=str.lower)
    assert 0 < len(words) <= 40


def test_the_picture_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "tools/docs/architecture.py"))["draw"]()
    assert (ROOT / "docs/internals/architecture.svg").read_text() == drawn
