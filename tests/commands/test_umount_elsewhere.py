"""umount of a volume that is mounted in more than one place: bind mounts, and copies in other mount namespaces."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.mountinfo import mounts
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.support.other_mounts import copies
from tests.fakes.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make bind mounts and mount namespaces")


@pytest.fixture
def bound(mount: Callable[..., Any], tmp_path: Path) -> Iterator[Any]:
    """A mount with a bind mount of a part of it, beside."""
    mounted, place = mount(), tmp_path / "else"
    place.mkdir()
    (mounted.path / "sub").mkdir()
    subprocess.run(["mount", "--bind", mounted.path / "sub", place], check=True)
    yield mounted
    subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    wait_until_free(mounted.volume)


@pytest.fixture
def copied(mount: Callable[..., Any]) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """A mount with a copy in the mount namespace of another process."""
    mounted = mount()
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo there; exec sleep 1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        eventually(lambda: is_asleep(process), "the program")
        yield mounted, process
    finally:
        process.kill()
        process.communicate()
    wait_until_free(mounted.volume)


def wait_until_free(volume: Path) -> None:
    eventually(lambda: lock_holder(str(volume)) is None, "the daemon's end")


def is_asleep(process: subprocess.Popen[bytes]) -> bool:
    """Whether the shell, whose name it has until then, has become the program."""
    return Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n"


def test_what_has_the_number_of_a_mount_that_has_ended_is_no_copy_of_it(
    bound: Any, tmp_path: Path, snapfs: Any
) -> None:
    """`umount` named a mount of somebody else, and `umount --lazy` would have detached it."""
    (own,) = (each for each in mounts() if each.mountpoint == str(bound.path))
    places = [str(bound.path), str(tmp_path / "else")]
    assert sorted(each.mountpoint for each in copies(own) if each.process is None) == sorted(places)
    assert copies(replace(own, source=f"{own.source}-before")) == []
    assert copies(replace(own, kind="fuse.other")) == []
    snapfs("umount", "--lazy", bound.path)


def test_umount_says_where_a_bind_mount_is_and_ends(bound: Any, tmp_path: Path, snapfs: Any) -> None:
    """Umount waits for ever, without a word, while a bind mount of a part exists."""
    done = snapfs("umount", "--timeout", "1s", bound.path, check=False)
    assert done.returncode == 4
    assert str(tmp_path / "else") in done.stderr
    assert not os.path.ismount(bound.path)
    (tmp_path / "else/file").write_bytes(b"still served")
    assert snapfs("umount", "--timeout", f"{PATIENCE_S:.0f}s", tmp_path / "else").returncode == 0
    assert lock_holder(str(bound.volume)) is None


def test_lazy_takes_every_place_of_this_namespace(bound: Any, tmp_path: Path, snapfs: Any) -> None:
    assert snapfs("umount", "--lazy", bound.path).returncode == 0
    assert not os.path.ismount(bound.path)
    assert not os.path.ismount(tmp_path / "else")
    wait_until_free(bound.volume)


def test_umount_says_whose_namespace_has_a_copy(copied: tuple[Any, subprocess.Popen[bytes]], snapfs: Any) -> None:
    """While another mount namespace has a copy of the mount: it states where, and --lazy does the rest."""
    mounted, process = copied
    done = snapfs("umount", "--timeout", "1s", mounted.path, check=False)
    assert done.returncode == 4
    assert f"{mounted.path} in the mount namespace of sleep ({process.pid})" in done.stderr
    again = snapfs("umount", mounted.volume, check=False)
    assert (again.returncode, "another mount namespace" in again.stderr) == (4, True)
    assert snapfs("umount", "--lazy", mounted.volume).returncode == 0
    assert lock_holder(str(mounted.volume)) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait(copied: tuple[Any, subprocess.Popen[bytes]], number: signal.Signals) -> None:
    mounted, _ = copied
    command = [sys.executable, "-m", "snapfs", "umount", "--timeout", "1h", str(mounted.path)]
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert waiting.stderr is not None
    while "waiting" not in (line := waiting.stderr.readline()):
        assert line, "it ended too early"
    waiting.send_signal(number)
    waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode in (130, -signal.SIGTERM)


def test_a_supervisor_can_be_ordered_to_end_each_process_with_a_copy(
    copied: tuple[Any, subprocess.Popen[bytes]],
) -> None:
    mounted, _ = copied
    os.kill(mounted.status()["supervisor"], signal.SIGTERM)
    wait_until_free(mounted.volume)


def test_a_copy_that_goes_with_the_mount_is_in_nobodys_way(mount: Callable[..., Any], snapfs: Any) -> None:
    """As of systemd's services, whose mount namespaces follow this one."""
    mounted = mount()
    command = ["unshare", "-m", "--propagation", "slave", "sh", "-c", "echo there; exec sleep 1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    shared = (
        "shared"
        in subprocess.run(
            ["findmnt", "-no", "PROPAGATION", "-T", mounted.path.parent], capture_output=True, text=True, check=False
        ).stdout
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        if not shared:
            pytest.skip("mounts of this machine are private: nothing follows")
        assert snapfs("umount", "--timeout", f"{PATIENCE_S:.0f}s", mounted.path).returncode == 0
    finally:
        process.kill()
        process.communicate()
