"""C extensions that do not fit the package: a mount is refused in one line, before anything is made or mounted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs.base import native_build
from snapfs.base.native_build import EXTENSIONS
from snapfs.fuse.kernel import router
from snapfs.live.content import datapath
from tests.fakes.patience import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
STALE = "snapfs: the C extensions were built from other sources: "
CONTENT, ROUTER = EXTENSIONS
pytestmark = pytest.mark.skipif(
    bool(datapath.why_not_native() or router.why_not()), reason="the C extensions are not built"
)


class Package:
    """A copy of snapfs with its extensions, as a checkout or, after `become_wheel`, as an installation."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "snapfs"
        shutil.copytree(ROOT / "snapfs", self.folder, ignore=shutil.ignore_patterns("__pycache__"))

    def extension(self, name: str) -> Path:
        (found,) = self.place.glob(f"{name.replace('.', '/')}.*.so")
        return found

    def append(self, name: str, line: str) -> None:
        with open(self.folder / name, "a") as file:
            file.write(f"{line}\n")

    def become_wheel(self, sources_hash: str = "", extensions: tuple[str, ...] = EXTENSIONS) -> None:
        native_build.write_record(self.folder, sources_hash or native_build.sources_hash(self.folder), extensions)
        for path in native_build.native_sources(self.folder):
            path.unlink()

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._start("-m", "snapfs", *map(str, arguments))

    def python(self, script: str) -> subprocess.CompletedProcess[str]:
        return self._start("-c", script)

    def _start(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.place)}
        environment.pop("SNAPFS_DATA_PATH", None)
        return subprocess.run(
            [sys.executable, "-P", *words], env=environment, cwd="/", capture_output=True, text=True, check=False,
            timeout=PATIENCE_S,
        )  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path / "package")


def change_a_header(package: Package) -> None:
    package.append("live/native/content.h", "/* of another commit */")


def add_a_source(package: Package) -> None:
    (package.folder / "fuse/native/queue.c").with_stem("another").write_text("")


def remove_a_source(package: Package) -> None:
    (package.folder / "fuse/native/suid_cache.c").unlink()


def take_an_earlier_build(name: str) -> Callable[[Package], None]:
    """An extension of the time before it carried a hash, in which what is used today is missing as well."""

    def put(package: Package) -> None:
        built = package.extension(name)
        built.with_name(f"{name.rpartition('.')[2]}.py").write_text("TEST_HOOKS = False\n")
        built.unlink()

    return put


def remove(name: str) -> Callable[[Package], None]:
    return lambda package: package.extension(name).unlink()


def cannot_be_loaded(package: Package) -> None:
    package.extension(CONTENT).write_bytes(b"\x7fELF of another machine")


def install_of_other_sources(package: Package) -> None:
    package.become_wheel("0" * 64)


def install_and_lose(package: Package) -> None:
    package.become_wheel()
    package.extension(ROUTER).unlink()


WAYS: dict[str, tuple[Callable[[Package], None], str]] = {
    "a header is another": (change_a_header, f"{STALE}run tools/setup"),
    "a source is new": (add_a_source, f"{STALE}run tools/setup"),
    "a source is gone": (remove_a_source, f"{STALE}run tools/setup"),
    "the data path has no hash": (take_an_earlier_build(CONTENT), f"{STALE}run tools/setup"),
    "the router has no hash": (take_an_earlier_build(ROUTER), f"{STALE}run tools/setup"),
    "the data path is missing": (remove(CONTENT), f"snapfs: the C extension {CONTENT} is not there"),
    "the router is missing": (remove(ROUTER), f"snapfs: the C extension {ROUTER} is not there"),
    "the data path cannot be loaded": (cannot_be_loaded, f"snapfs: the C extension {CONTENT} is not there"),
    "an installation has others": (install_of_other_sources, f"{STALE}install snapfs again"),
    "an installation has lost one": (install_and_lose, f"snapfs: the C extension {ROUTER} is not there"),
}


FOREGROUND = ["a header is another", "the data path has no hash", "the router is missing"]


@pytest.mark.parametrize(("way", "option"), [*((way, ()) for way in WAYS), *((way, ("-f",)) for way in FOREGROUND)])
def test_a_mount_is_refused_in_one_line(
    way: str, option: tuple[str, ...], package: Package, volume_dir: Path, mountpoint: Path
) -> None:
    spoil, line = WAYS[way]
    spoil(package)
    done = package.run("mount", *option, volume_dir, mountpoint)
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(line)
    assert not volume_dir.exists()
    assert not os.path.ismount(mountpoint)


def test_nobody_is_fenced_off_by_a_mount_that_is_refused(package: Package, tmp_path: Path, mountpoint: Path) -> None:
    change_a_header(package)
    done = package.run("mount", "--from", tmp_path / "nothing there", tmp_path / "new", mountpoint)
    assert (done.returncode, done.stderr) == (3, f"{STALE}run tools/setup\n")


def status(mountpoint: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((mountpoint / ".snapfs/status").read_bytes())
    return facts


@pytest.mark.parametrize("installed", [False, True], ids=["checkout, by choice", "built without them"])
def test_python_serves_where_they_are_missing(
    installed: bool, package: Package, volume_dir: Path, mountpoint: Path
) -> None:
    if installed:
        package.become_wheel(extensions=())
    for name in EXTENSIONS:
        package.extension(name).unlink()
    options = () if installed else ("-o", "live.data_path=python")
    done = package.run("mount", *options, volume_dir, mountpoint)
    assert done.returncode == 0, done.stderr
    assert status(mountpoint)["data_path"]["active"] == "python"
    assert package.run("umount", mountpoint).returncode == 0


def test_a_volume_may_choose_python_and_others_are_refused_all_the_same(
    package: Package, volume_dir: Path, mountpoint: Path
) -> None:
    assert package.run("mount", volume_dir, mountpoint).returncode == 0
    assert package.run("umount", mountpoint).returncode == 0
    settings = volume_dir / "volume.toml"
    settings.write_text(settings.read_text().replace("[live]\n", '[live]\ndata_path = "python"\n', 1))
    take_an_earlier_build(ROUTER)(package)
    done = package.run("mount", volume_dir, mountpoint)
    assert (done.returncode, done.stderr) == (3, f"{STALE}run tools/setup\n")
    (package.folder / "fuse/kernel/_router.py").unlink()
    assert package.run("mount", volume_dir, mountpoint).returncode == 0
    assert package.run("umount", mountpoint).returncode == 0


def test_sources_that_change_under_a_mount_end_neither_it_nor_its_restarts(
    package: Package, volume_dir: Path, mountpoint: Path
) -> None:
    assert package.run("mount", volume_dir, mountpoint).returncode == 0
    (mountpoint / "file").write_text("kept")
    first = status(mountpoint)
    change_a_header(package)
    os.kill(first["pid"], signal.SIGKILL)
    assert status(mountpoint)["daemons_before"] == 1  # waits for the next daemon, in the kernel
    refused = package.run("upgrade", mountpoint)
    assert (refused.returncode, refused.stderr) == (3, f"{STALE}run tools/setup\n")
    os.kill(first["supervisor"], signal.SIGUSR2)  # as a command of another version does, which knows of no hash
    eventually(lambda: STALE[8:] in json.loads((volume_dir / "supervisor.json").read_bytes())["words"])
    assert (mountpoint / "file").read_text() == "kept"
    assert status(mountpoint)["supervisor"] == first["supervisor"]
    assert package.run("umount", mountpoint).returncode == 0


def test_a_program_of_other_sources_is_not_used(package: Package) -> None:
    script = "from snapfs.daemon.supervision import asleep; print(asleep.program() or 'none')"
    assert package.python(script).stdout.strip().endswith("snapfs-supervisor")
    change_a_header(package)
    assert package.python(script).stdout.strip() == "none"


def test_doctor_names_it(package: Package) -> None:
    change_a_header(package)
    done = package.run("doctor")
    assert "data path" in done.stdout
    assert f"nothing can be mounted: {STALE[8:]}run tools/setup" in done.stdout
    assert done.returncode != 0


def test_a_live_tree_is_refused_as_well(package: Package) -> None:
    """Commands that make a live tree without a mount: a standby, a clone."""
    change_a_header(package)
    done = package.python("from snapfs.live.content import datapath; datapath.choose()")
    assert done.stderr.splitlines()[-1] == f"snapfs.base.errors.UserError: {STALE[8:]}run tools/setup"


def test_a_mount_whose_daemons_die_over_the_first_request_is_removed(
    package: Package, volume_dir: Path, mountpoint: Path
) -> None:
    """What a C extension of other sources did before it was refused, and what any fault of that kind would do."""
    package.append("fuse/virtual/virtual_nodes.py", "VirtualNodes.lookup = lambda *_: __import__('os')._exit(70)")
    package.append("daemon/supervision/restart_policy.py", "DELAYS_SECONDS = (0.0, 0.0)")
    done = package.run("mount", volume_dir, mountpoint)
    assert done.returncode == 9, done.stderr
    created, line = done.stderr.splitlines()
    assert created == f"snapfs: created a new volume at {volume_dir}"
    assert "exit code 70" in line
    assert not os.path.ismount(mountpoint)
    assert not volume_dir.exists()
