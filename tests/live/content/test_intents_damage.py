"""Damage of a write-intent log: no change is missing from the next snapshot."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from snapfs.base.blocks import ROOT_INO, Disk, Epoch, Ino
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intent_records import (
    HEADER_SIZE,
    RECORD_SIZE,
    IntentKind,
    pack_header,
    read_log,
    record,
    records_of,
)
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree


def test_every_flip_is_noticed_and_every_truncation_within_a_record_ends_the_log(tmp_path: Path) -> None:
    """Exhaustive. Only the header's padding is free."""
    dirty = DirtyMap()
    dirty.mark_blocks(3, 5)
    whole = pack_header("boot", Epoch(4), Ino(9)) + b"".join(records_of(Ino(5), dirty)) + record(IntentKind.SEALED)
    path = tmp_path / "log"
    path.write_bytes(whole)
    right = read_log(str(path))
    assert right is not None
    assert right.sealed
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            story = read_log(str(path))
            assert story is not None
            if not story.damaged:
                assert at < HEADER_SIZE
                assert (story.boot_id, story.epoch, story.new_from, story.sealed) == ("boot", 4, 9, True)
            else:
                assert (story.boot_id, story.new_from, story.sealed, story.clean) == ("", 0, False, False)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        story = read_log(str(path))
        assert (story is None) == (size < HEADER_SIZE)
        assert story is None or not story.damaged


def test_a_flipped_bit_after_a_kill_leaves_no_change_out_of_the_next_snapshot(tmp_path: Path) -> None:
    """Everything after the damaged record was forgotten, and the next cut lacked it."""

    def opened() -> LiveTree:
        names = Namespace(str(tmp_path / "namespace.db"), Disk())
        return LiveTree(str(tmp_path), names, Disk(), boot_id="boot")

    child = os.fork()
    if not child:
        tree = opened()
        inos = [tree.mknod(ROOT_INO, b"%d" % n, stat.S_IFREG | 0o600, 0, 0, 0).ino for n in range(3)]
        for ino in inos:
            tree.write(ino, 0, b"old" * 9000)
        tree.cut().finish(True)
        tree.tidy()
        tree.sync_soon()
        for ino in inos:
            tree.prepare_write(ino)
            tree.write(ino, 5000, b"new")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    log = max(path for path in (tmp_path / "intents").iterdir() if path.stat().st_size > HEADER_SIZE)
    data = bytearray(log.read_bytes())
    data[HEADER_SIZE + RECORD_SIZE // 2] ^= 4
    log.write_bytes(data)
    tree = opened()
    cut = tree.cut()
    assert len(set(cut.changed_files())) == 3
    assert any("is damaged" in line for line in tree.recovered)
    cut.finish(True)
    tree.close()
