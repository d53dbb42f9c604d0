"""`snapfs.Volume` and its siblings: what a program does without the command line, with and without an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import snapfs
from tests.conftest import Mounted


def test_snapshots_forks_differences_and_restores(mounted: Mounted, tmp_path: Path) -> None:
    volume = snapfs.Volume(mounted.path)
    assert (volume.path, volume.mountpoint, volume.is_fork) == (mounted.volume, mounted.path, False)
    (mounted.path / "file").write_bytes(b"1")
    first = volume.snapshot("first")
    assert (first.number, first.name, first.state) == (1, "first", "good")
    with volume.fork(tmp_path / "fork") as fork:
        assert fork.is_fork
        assert fork.id != volume.id
        (tmp_path / "fork/file").write_bytes(b"2")
        second = fork.snapshot()
        (change,) = volume.diff(first.number, second.number, other=fork)
        assert (change.path, change.kind) == (b"file", "changed")
        fork.restore(second.number, tmp_path / "out", verify=True)
        assert [each.number for each in fork.list()] == [1, second.number]
        with open(tmp_path / "fork/file", "rb"), pytest.raises(snapfs.BusyError):
            fork.umount()
    assert (tmp_path / "out/file").read_bytes() == b"2"
    assert not (tmp_path / "fork").exists()
    assert not Path(f"{mounted.volume}.forks").exists()
    (mounted.path / "file").write_bytes(b"3")
    volume.rollback("first")
    assert (mounted.path / "file").read_bytes() == b"1"
    assert list(volume.diff(1, volume.list()[-1].number)) == []
    with pytest.raises(snapfs.UserError, match="neither a volume nor inside"):
        snapfs.Volume(tmp_path)
    volume.umount()
    with pytest.raises(snapfs.UserError):
        snapfs.Volume(mounted.volume).status()


def _by_asyncio(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


@pytest.mark.parametrize("run", [trio.run, _by_asyncio], ids=["trio", "asyncio"])
def test_in_an_event_loop(mounted: Mounted, tmp_path: Path, run: Callable[..., Any]) -> None:
    (mounted.path / "file").write_bytes(b"1")

    async def story() -> None:
        volume = await snapfs.AsyncVolume.at(mounted.path)
        made = await volume.snapshot()
        async with await volume.fork(tmp_path / "fork", at=made.number) as fork:
            (tmp_path / "fork/file").write_bytes(b"2")
            own = await fork.snapshot()
            assert [each.kind for each in await volume.diff(made.number, own.number, other=fork)] == ["changed"]
        assert len(await volume.list()) == 1
        assert (await volume.status())["snapshots"] == 1

    run(story)
    assert not (tmp_path / "fork").exists()


def test_a_daemon_imports_none_of_it() -> None:
    code = "import snapfs, sys; assert not [each for each in sys.modules if each.startswith('snapfs.')]; snapfs.Volume"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert set(dir(snapfs)) >= {"Volume", "AsyncVolume", "SnapfsError", "__version__"}
    with pytest.raises(AttributeError):
        snapfs.no_such_name  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(snapfs.__file__).parent / "py.typed").exists()
