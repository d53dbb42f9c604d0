"""A note beside the live tree that a later snapfs wrote is refused before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume import Volume
from snapfs.daemon.volume_opening import open_repository, open_tree
from snapfs.transfer.consistency import hook_note
from snapfs.transfer.seal import seal_attempts, snapshot_failures
from snapfs.transfer.seal.seal_attempts import Attempts
from snapfs.transfer.seal.snapshot_failures import Failing

NOTES = {
    seal_attempts.NAME: seal_attempts.NOTE.kind, snapshot_failures.NAME: snapshot_failures.FAILED.kind,
    hook_note.NAME: hook_note.BEGUN.kind,
}  # fmt: skip


def write_later(path: Path, kind: str) -> bytes:
    data = JsonFile(kind, dict[str, Any]).encode({"format": 99, "more": "than this snapfs knows"})
    path.write_bytes(data)
    return data


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NOTES)
def test_a_volume_with_a_later_note_is_not_opened_and_not_touched(tmp_path: Path, name: str) -> None:
    volume = Volume.create(str(tmp_path / "volume"), Disk())
    repository = open_repository(volume, Disk())
    open_tree(volume, Disk(), repository).close()
    write_later(Path(volume.live_dir) / name, NOTES[name])
    before = everything(Path(volume.live_dir))
    with pytest.raises(VersionError, match=f"{name} has format version 99.*use a newer snapfs") as refused:
        open_tree(volume, Disk(), repository)
    assert refused.value.exit_code == 6
    assert everything(Path(volume.live_dir)) == before
    repository.close()


def test_an_attempt_writes_over_no_later_note(tmp_path: Path) -> None:
    data = write_later(tmp_path / seal_attempts.NAME, seal_attempts.NOTE.kind)
    attempts = Attempts(str(tmp_path), "boot", Disk(), lambda: "")
    with pytest.raises(VersionError), attempts.attempt(0):
        pytest.fail("the attempt began")
    assert (tmp_path / seal_attempts.NAME).read_bytes() == data


def test_failures_are_not_counted_over_a_later_note(tmp_path: Path) -> None:
    data = write_later(tmp_path / snapshot_failures.NAME, snapshot_failures.FAILED.kind)
    with pytest.raises(VersionError):
        Failing(str(tmp_path), Disk())
    assert (tmp_path / snapshot_failures.NAME).read_bytes() == data
