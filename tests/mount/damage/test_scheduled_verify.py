"""`[verify] share`: a mounted volume verifies itself in the background, and heals what is bad."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapfs.base.blocks import Disk
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.format import FRAME_BYTES, ObjectKind
from snapfs.store.repository.repository import Repository
from tests.conftest import Mounted
from tests.fakes.patience import eventually


def flip_a_chunk(path: Path) -> None:
    """One byte of the largest chunk in the store."""
    volume = Volume.open(str(path), Disk())
    identity = StoreIdentity(volume.volume_id, volume.seed)
    repository = Repository.open(volume.store_dir, identity, Disk(), readonly=True)
    try:
        segments = [(info, repository.index.reader(info.first)) for info in repository.index.segments()]
        chunks = [
            (row.stored, info.path, row.offset)
            for info, reader in segments if reader is not None for row in reader.rows() if row.kind == ObjectKind.CHUNK
        ]  # fmt: skip
        stored, segment, offset = max(chunks)
    finally:
        repository.close()
    with open(segment, "r+b") as file:
        file.seek(offset + FRAME_BYTES + stored // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x55]))


def test_a_flipped_bit_is_found_and_healed_and_the_pass_is_recorded(mount: Callable[..., Mounted], snapfs: Any) -> None:
    mounted = mount()
    (mounted.path / "file").write_bytes(os.urandom(200_000))
    mounted.snapshot("one")
    assert mounted.status()["verify"] == {"share": "off", "last_whole_pass_ns": None, "pass": None}
    snapfs("umount", mounted.path)
    flip_a_chunk(mounted.volume)
    mounted = mount("-o", "verify.share=100%")
    eventually(lambda: mounted.status()["verify"]["last_whole_pass_ns"], "a whole pass")
    facts = mounted.status()["verify"]
    assert facts["pass"]["repaired"] == 1
    listed = json.loads(snapfs("list", mounted.path, "--json").stdout)
    assert [each["gates"]["verified"]["how"] for each in listed] == ["POSIX_FADV_DONTNEED"]
    assert "snapfs_verify_timestamp_seconds" in (mounted.path / ".snapfs" / "metrics").read_text()
    assert snapfs("verify", mounted.path).returncode == 0
    assert "repaired 1 objects" in (mounted.volume / "daemon.log").read_text()
