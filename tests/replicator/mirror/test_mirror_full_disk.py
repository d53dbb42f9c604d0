"""A mirror whose disk fills up: a clear refusal, nothing acknowledged is lost, and with room again the push goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.base.blocks import Disk
from snapfs.store.protocol import wire
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.targets.mirror_process import MirrorProcess

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="makes a small filesystem, which takes root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A loop-mounted ext4 of 16 MiB."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, leave_bytes: int) -> None:
    place = os.statvfs(path.parent)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(place.f_bavail * place.f_frsize - leave_bytes, 1))


@pytest.mark.parametrize("leave_kib", [8, 24, 60])
@pytest.mark.parametrize("reserve", ["0B", "1MiB"])
def test_a_full_disk(tmp_path: Path, small_disk: Path, leave_kib: int, reserve: str) -> None:
    history = History(tmp_path / "source", 7)
    history.grow(6, steps=20)
    process = MirrorProcess(small_disk / "root", "--reserve", reserve, "--upkeep", "0.3")
    process.start()
    try:
        _story(process, history, small_disk, leave_kib, reserve)
    finally:
        process.stop()
        history.close()


def _story(process: MirrorProcess, history: History, small_disk: Path, leave_kib: int, reserve: str) -> None:
    client = process.client()
    client.create()
    client.claim(1)
    client.put(history.part(history.numbers(*history.records[:2])))
    client.commit(history.records[:2])
    fill(small_disk / "ballast", leave_kib << 10)
    acknowledged: list[int] = []
    with pytest.raises(RefusedError) as caught:
        for _ in range(50):  # the rest of the disk goes in small pieces
            for record in history.records[2:]:
                lacking = client.lacks(history.numbers(record))
                for part in history.parts(lacking, 10):  # type: ignore[arg-type]
                    client.put(part)
                acknowledged += lacking
                client.commit([record])
            history.grow(1, steps=20)
    assert (caught.value.refusal, caught.value.status) == (Refusal.DISK_FULL, 507)
    assert "make room there" in str(caught.value)
    if reserve != "0B":
        with pytest.raises(RefusedError) as caught:
            process.client("").request("GET", wire.READY_PATH)
        assert caught.value.status in (500, 503)
    there = [snapshot.record["number"] for snapshot in client.snapshots().snapshots]
    assert there[:2] == [1, 2]
    assert not client.lacks(sorted(set(acknowledged)))
    process.kill()
    process.start()
    assert [snapshot.record["number"] for snapshot in client.snapshots().snapshots] == there
    (small_disk / "ballast").unlink()
    rest = [record for record in history.records if record.number not in there]
    for part in history.parts(client.lacks(history.numbers(*rest)), 200):  # type: ignore[arg-type]
        client.put(part)
    client.commit(rest)
    process.stop()
    repository = Repository.open(str(small_disk / "root" / "pg" / "store"), IDENTITY, Disk(), readonly=True)
    for record in history.records:
        history.assert_equal(repository, record.number)
    assert verify(repository, repository.snapshots()).is_good
    repository.close()
