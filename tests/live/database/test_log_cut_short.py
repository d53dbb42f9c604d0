"""A log of the namespace that ends before what was answered deletes no bytes; a whole one is believed."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.database import checkpointer, wal_files
from snapfs.live.database.high_water_mark import CHECKSUM, SLOT, SLOT_BYTES, HighWaterMark, LogVerdict, read_claim
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

FILES = 12


def opened(folder: Path, boot_id: str = "boot", adopting: bool = False) -> LiveTree:
    names = Namespace(str(folder / "namespace.db"), Disk(), boot_id=boot_id)
    try:
        return LiveTree(str(folder), names, Disk(), boot_id=boot_id, adopting=adopting)
    except BaseException:
        names.close()
        raise


def content(number: int) -> bytes:
    return b"content of file %d\n" % number * 300


def make_history(folder: Path) -> None:
    """Files with contents, the later half made after the last flush of the log; a snapshot was made of the first."""
    tree = opened(folder)
    for number in range(FILES):
        ino = tree.mknod(ROOT_INO, b"%d" % number, stat.S_IFREG | 0o600, 0, 0, 0).ino
        tree.write(ino, 0, content(number))
        if number == FILES // 2 - 1:
            tree.cut().finish(True)
            tree.tidy()
            tree.sync_soon()  # makes all that is committed durable


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A live tree as a kill leaves it."""
    folder = tmp_path_factory.mktemp("killed") / "live"
    folder.mkdir()
    child = os.fork()
    if not child:
        make_history(folder)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.truncate(folder / "namespace.db-wal", used_bytes(folder))
    for name in ("namespace.db-shm", "namespace.db-reserve"):
        (folder / name).unlink()
    return folder


def used_bytes(folder: Path) -> int:
    claim = read_claim(str(folder / "namespace.db-mark"))
    assert claim is not None
    return 32 + claim.committed.frames * wal_files.FRAME_SIZE


@pytest.fixture
def live(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "live"))


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ 1 << bit]))


def found(tree: LiveTree, folder: Path) -> set[int]:
    """Which files' contents there still are: under their names, or among the strays."""
    data = [path.read_bytes() for path in folder.glob("aside/*/data/*")]
    data += [tree.read(attr.ino, 0, 1 << 20) or b"" for _, _, attr in tree.readdir(ROOT_INO, 0, 100)]
    return {number for number in range(FILES) if content(number) in data}


def refused_or_opened(folder: Path, boot_id: str = "boot") -> LiveTree | None:
    """None if all names are lost: then the mount is refused, again and again, and each byte is where it was."""
    try:
        return opened(folder, boot_id)
    except CorruptionError:
        with pytest.raises(CorruptionError, match=r"namespace\.db-wal"):
            opened(folder, boot_id)
        data = [path.read_bytes() for path in folder.glob("data/*/*")]
        assert all(content(number) in data for number in range(FILES))
        assert (folder / "namespace.db-wal.damaged").exists()
        return None


@pytest.mark.parametrize("boot_id", ["boot", "another"])
def test_a_whole_log_is_believed(live: Path, boot_id: str) -> None:
    tree = opened(live, boot_id)
    assert found(tree, live) == set(range(FILES))
    assert not tree.damaged
    assert not (live / "aside").exists()
    tree.close()


def test_a_flipped_bit_of_the_log_after_a_kill_deletes_no_bytes(killed: Path, tmp_path: Path) -> None:
    """Over the whole log, a bit of each of 34 places, and of the headers."""
    chance = random.Random(4)
    size = (killed / "namespace.db-wal").stat().st_size
    places = [*range(0, 56, 9), *(chance.randrange(size) for _ in range(34))]
    lost = 0
    for at in places:
        folder = Path(shutil.copytree(killed, tmp_path / "live"))
        flip(folder / "namespace.db-wal", at, chance.randrange(8))
        if (tree := refused_or_opened(folder)) is None:
            shutil.rmtree(folder)
            continue
        assert found(tree, folder) == set(range(FILES)), at
        tree.check_invariants()
        tree.names.check_invariants()
        assert tree.damaged == bool(list(folder.glob("aside/*-damage"))), at
        lost += tree.damaged
        tree.close()
        shutil.rmtree(folder)
    assert lost > len(places) * 0.5


def test_every_truncation_of_the_log_after_a_kill_deletes_no_bytes(killed: Path, tmp_path: Path) -> None:
    """At borders of frames and within frames."""
    size = (killed / "namespace.db-wal").stat().st_size
    for length in sorted(
        {0, 10, *range(32, size, 3 * wal_files.FRAME_SIZE), *range(100, size, wal_files.FRAME_SIZE * 9)}
    ):
        folder = Path(shutil.copytree(killed, tmp_path / "live"))
        os.truncate(folder / "namespace.db-wal", length)
        if (tree := refused_or_opened(folder)) is not None:
            assert found(tree, folder) == set(range(FILES)), length
            assert tree.damaged
            tree.close()
        shutil.rmtree(folder)


def test_the_loss_is_said_recorded_and_built_upon(live: Path) -> None:
    flip(live / "namespace.db-wal", used_bytes(live) // 2)
    before = (live / "namespace.db-wal").read_bytes()
    tree = opened(live)
    assert tree.recovered[0].startswith("DAMAGED: ")
    assert "aside" in tree.recovered[-1]
    (folder,) = live.glob("aside/*-damage")
    assert json.loads((folder / "record.json").read_text())["why"].endswith("ends before what was answered")
    assert (folder / "namespace.db-wal.damaged").read_bytes()[: len(before)] == before
    old = {int(path.name, 16) for path in (folder / "data").iterdir()}
    made = tree.mknod(ROOT_INO, b"new", stat.S_IFREG | 0o600, 0, 0, 0)
    assert made.ino > max(old) + 1000, "no number is given out twice"
    assert tree.names.sealed_as not in (0, 1), "no snapshot is what comes next is relative to"
    tree.close()
    again = opened(live)
    assert not again.damaged
    assert again.lookup(ROOT_INO, b"new").ino == made.ino
    assert folder.exists(), "only a person removes it"
    again.close()


def test_a_crash_before_recovery_is_done_does_not_make_the_log_good(live: Path) -> None:
    """What was found is found again, whatever the first attempt has written."""
    flip(live / "namespace.db-wal", used_bytes(live) // 2)
    names = Namespace(str(live / "namespace.db"), Disk(), boot_id="boot")
    assert names.log is LogVerdict.CUT_SHORT
    names.after_loss()
    for number in range(200):
        names.create(ROOT_INO, b"x%d" % number, stat.S_IFDIR | 0o700, 0, 0)
        names.rmdir(ROOT_INO, b"x%d" % number)
        names.remove_orphans(names.orphans())
    names.close()
    tree = opened(live)
    assert tree.damaged
    assert found(tree, live) == set(range(FILES))
    tree.close()


def test_a_mount_that_lives_on_is_refused(live: Path) -> None:
    """The kernel holds what the namespace has lost."""
    flip(live / "namespace.db-wal", used_bytes(live) // 2)
    for _ in range(2):
        with pytest.raises(CorruptionError, match=r"namespace\.db-wal .* unmount, and mount again"):
            opened(live, adopting=True)
    tree = opened(live)
    assert tree.damaged
    assert found(tree, live) == set(range(FILES))
    tree.close()


def test_after_a_power_cut_the_log_may_end_early_but_not_before_the_last_flush(live: Path) -> None:
    """Of a log that ends after its last flush, files that came later are litter and go, as they always did."""
    half = 0
    for length in range(used_bytes(live), 0, -3 * wal_files.FRAME_SIZE):
        copy = Path(shutil.copytree(live, live.parent / "copy"))
        os.truncate(copy / "namespace.db-wal", length)
        if (tree := refused_or_opened(copy, "another")) is None:
            shutil.rmtree(copy)
            continue
        there = found(tree, copy)
        assert there >= set(range(FILES // 2)), length
        if tree.damaged:
            assert there == set(range(FILES)), length
        half += not tree.damaged
        tree.close()
        shutil.rmtree(copy)
    assert 2 < half < used_bytes(live) // (3 * wal_files.FRAME_SIZE)


def test_every_flip_and_truncation_of_the_mark_is_harmless(killed: Path, tmp_path: Path) -> None:
    """Exhaustive over what a slot uses; the other slot claims a transaction less."""
    folder = Path(shutil.copytree(killed, tmp_path / "live"))
    path, whole = folder / "namespace.db-mark", (killed / "namespace.db-mark").read_bytes()
    frames = (used_bytes(killed) - 32) // wal_files.FRAME_SIZE

    def judged(data: bytes, boot_id: str) -> LogVerdict:
        path.write_bytes(data)
        mark = HighWaterMark(str(path), Disk(), boot_id)
        mark.judge(str(folder / "namespace.db-wal"), frames)
        return mark.found

    for slot in (0, SLOT_BYTES):
        for at in range(slot, slot + SLOT.size + CHECKSUM.size):
            for bit in range(8):
                damaged = bytearray(whole)
                damaged[at] ^= 1 << bit
                assert judged(bytes(damaged), "boot" if bit & 1 else "another") is LogVerdict.WHOLE, (at, bit)
    for length in range(len(whole)):
        assert judged(whole[:length], "boot") is not LogVerdict.CUT_SHORT, length


def test_without_a_mark_strays_are_put_aside(live: Path) -> None:
    """A volume of an earlier snapfs has none: then nothing is lost, and nothing deleted."""
    (live / "namespace.db-mark").unlink()
    (live / "data" / "ff" / "ff").write_bytes(b"bytes of no inode")
    tree = opened(live)
    assert not tree.damaged
    (kept,) = live.glob("aside/*-unknown/data/ff")
    assert kept.read_bytes() == b"bytes of no inode"
    tree.close()
    (live / "data" / "ff" / "ff").write_bytes(b"litter of a creation that was cut short")
    for path in (live / "intents").iterdir():
        path.unlink()
    tree = opened(live)
    assert not (live / "data" / "ff" / "ff").exists()
    assert len(list(live.glob("aside/*"))) == 1
    tree.close()


def test_a_later_mark_is_refused_and_nothing_touched(live: Path) -> None:
    import zlib

    path = live / "namespace.db-mark"
    data = bytearray(path.read_bytes())
    for slot in (0, SLOT_BYTES):
        data[slot + 8] = 9
        data[slot + SLOT.size : slot + SLOT.size + CHECKSUM.size] = CHECKSUM.pack(
            zlib.crc32(data[slot : slot + SLOT.size])
        )
    path.write_bytes(data)
    wal_before = (live / "namespace.db-wal").read_bytes()
    with pytest.raises(VersionError, match="namespace.db-mark"):
        opened(live)
    assert path.read_bytes() == data
    assert wal_before


def test_kills_at_any_time_leave_a_log_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpoints all the time, and a log that starts over again and again."""
    monkeypatch.setattr(checkpointer, "CHECKPOINT_AT_BYTES", 20_000)
    monkeypatch.setattr(checkpointer, "FORCE_AT_BYTES", 60_000)
    chance, known = random.Random(1), 0
    for life in range(25):
        steps = chance.randrange(5, 120)
        child = os.fork()
        if not child:
            tree = opened(tmp_path)
            ino: Ino | None = None
            for step in range(steps):
                ino = tree.mknod(ROOT_INO, b"%d-%d" % (life, step), stat.S_IFREG | 0o600, 0, 0, 0).ino
                if step % 7 == 3:
                    tree.tidy()
                    tree.sync_soon()
                if step % 11 == 5:
                    tree.fsync(ino)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        known += steps
        tree = opened(tmp_path)
        assert not tree.damaged, life
        assert not (tmp_path / "aside").exists()
        assert tree.names.counts() == known + 1
        tree.close()
