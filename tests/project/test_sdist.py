"""The source distribution: it holds what the repository holds, and a wheel can be built from it alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from snapfs.base import native_build
from tests.fakes.patience import PATIENCE_S
from tests.project.project_files import MADE, ROOT, project_files


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist, built from a copy of the repository's files in which nothing else lies."""
    folder = tmp_path_factory.mktemp("sdist")
    for path in project_files():
        (folder / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, folder / "copy" / path, follow_symlinks=False)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", "--dist-dir", str(folder)]
    subprocess.run(command, cwd=folder / "copy", check=True, capture_output=True, timeout=PATIENCE_S)
    (made,) = folder.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def test_it_holds_what_the_repository_holds(sdist: Path) -> None:
    held = {str(path.relative_to(sdist)) for path in sdist.rglob("*") if path.is_file() or path.is_symlink()}
    held = {path for path in held if not path.startswith("snapfs.egg-info/")} - MADE
    assert held == set(project_files())
    assert all((sdist / path).read_bytes() == (ROOT / path).read_bytes() for path in held)


def test_its_files_are_found_without_git(sdist: Path) -> None:
    assert not (sdist / ".git").exists()
    made = [
        sdist / path for path in ("snapfs/__pycache__/cli.pyc", ".venv/python", "snapfs/live/content/_content.x.so")
    ]
    for path in made:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = project_files(sdist)
    for path in made:
        path.unlink()
    assert found == project_files()


def test_the_retired_words_are_searched_in_it(sdist: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_words.py"]
    environment = {**os.environ, "PYTHONPATH": str(sdist)}
    done = subprocess.run(
        command, cwd=sdist, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_wheel_is_built_from_it(sdist: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(sdist)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("snapfs-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {
        path
        for path in project_files()
        if path.startswith(("snapfs/", "replicator/")) and path.endswith((".py", ".pyi"))
    }
    assert modules <= set(names)
    pages = {path for path in project_files() if path.startswith("replicator/console/") and not path.endswith(".py")}
    assert len(pages) > 10
    assert pages <= set(names), "templates and static files of the console"
    assert {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")} == {"_content", "_router"}
    program = next(info for info in zipfile.ZipFile(wheel).infolist() if info.filename.endswith("/snapfs-supervisor"))
    assert program.external_attr >> 16 & 0o111  # pip keeps it executable
    assert not [name for name in names if name.endswith((".c", ".h")) or name.startswith(("tests/", "tools/"))]
    record = zipfile.ZipFile(wheel).read("snapfs/native-build").decode().split()
    assert record == [native_build.sources_hash(ROOT / "snapfs"), *native_build.EXTENSIONS]
    scripts = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {line.partition(" =")[0] for line in scripts.splitlines() if "=" in line} == {"snapfs", "snapfs-replicator"}
