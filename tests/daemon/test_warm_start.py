"""Daemons that are forked of a warm process: as those that are started, and never dependent on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.commands.mounting.warm_server import WarmServer
from snapfs.commands.warm import warm_client, warm_key
from snapfs.commands.warm.warm_client import WarmBeginning
from tests.conftest import Mounted, run_snapfs
from tests.fakes.patience import PATIENCE_S, eventually


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A warm process for us; its number. In a folder of its own: the name of a socket has at most 107 bytes."""
    folder = tempfile.mkdtemp(prefix="snapfs-warm-", dir="/tmp")
    monkeypatch.setenv(warm_key.VARIABLE, folder)
    beginning = WarmBeginning()
    process = beginning._process
    assert process is not None
    beginning.wait()
    yield process.pid
    for sent in (signal.SIGKILL, signal.SIGCONT):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sent)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)
    shutil.rmtree(folder)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_mount_of_a_warm_process_is_as_any_other(warm: int, mount: Callable[..., Mounted]) -> None:
    """It is forked of it, has its own session and command line, and outlives it, its daemon, and an upgrade."""
    mounted = mount()
    facts = mounted.status()
    assert parent_of(facts["supervisor"]) == warm
    assert os.getsid(facts["supervisor"]) == facts["supervisor"]
    assert str(mounted.volume).encode() in Path(f"/proc/{facts['pid']}/cmdline").read_bytes()
    os.kill(warm, signal.SIGKILL)
    (mounted.path / "file").write_bytes(b"1")
    os.kill(facts["pid"], signal.SIGKILL)
    eventually(lambda: mounted.status()["pid"] != facts["pid"], PATIENCE_S)
    run_snapfs("upgrade", mounted.path)
    assert mounted.status()["supervisor"] == facts["supervisor"]
    assert (mounted.path / "file").read_bytes() == b"1"


def test_what_keeps_a_mount_from_being_is_reported_as_ever(warm: int, tmp_path: Path, mountpoint: Path) -> None:
    run_snapfs("mount", tmp_path / "volume", mountpoint)
    refused = run_snapfs("mount", tmp_path / "volume", tmp_path, check=False)
    assert refused.returncode in (3, 4), refused.stderr
    run_snapfs("umount", mountpoint)
    (tmp_path / "volume/live/namespace.db").write_bytes(b"no database")
    refused = run_snapfs("mount", tmp_path / "volume", mountpoint, check=False)
    assert refused.returncode == 5, refused.stderr


def test_one_that_hangs_is_not_waited_for(warm: int, mount: Callable[..., Mounted]) -> None:
    os.kill(warm, signal.SIGSTOP)
    mounted = mount()
    assert parent_of(mounted.status()["supervisor"]) != warm
    os.kill(warm, signal.SIGCONT)  # it finds the request now, and the end of its pipe
    (mounted.path / "file").write_bytes(b"1")
    assert (mounted.path / "file").read_bytes() == b"1"


def test_a_process_that_inherits_other_things_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm_key.VARIABLE, str(tmp_path / "warm"))
    before = warm_key.key()
    assert warm_key.key() == before
    old = os.umask(0o027)
    try:
        assert warm_key.key() != before
    finally:
        os.umask(old)
    monkeypatch.setenv("PYTHONPATH", f"{warm_key.package_folder()}:")  # what a start puts there itself
    assert warm_key.key() == before
    monkeypatch.setenv("SNAPFS_DATA_PATH", "python")
    assert warm_key.key() != before


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm_key.VARIABLE, str(tmp_path / "warm"))
    (tmp_path / "warm").mkdir(mode=0o700)
    assert warm_key.socket_path() is not None
    (tmp_path / "warm").chmod(0o770)
    assert warm_key.socket_path() is None
    assert not warm_key.make_folder()
    monkeypatch.setenv(warm_key.VARIABLE, "off")
    assert not warm_key.make_folder()


def test_it_ends_when_nobody_asks(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    server = WarmServer(str(path), idle_s=0.0)
    with pytest.raises(BlockingIOError):
        WarmServer(str(path))
    assert path.exists()
    assert server.run() is None
    server.close()
    assert not path.exists()


def test_what_is_no_request_is_passed_over(warm: int) -> None:
    ends = [os.pipe(), os.pipe()]
    assert warm_client.start(["umount", "x"], {}, ends[0][1], ends[1][0]) is None
    for fd in (*ends[0], *ends[1]):
        os.close(fd)
    os.kill(warm, 0)
