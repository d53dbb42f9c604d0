"""An intent log that was cut off between two records, or is gone, hides no change."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from snapfs.base.blocks import ROOT_INO, Disk, Epoch, Ino
from snapfs.live.content import datapath
from snapfs.live.content.datapath import DataPath
from snapfs.live.intents import intents_mark
from snapfs.live.intents.intent_records import (
    HEADER_SIZE,
    MARKED,
    RECORD_SIZE,
    IntentKind,
    pack_header,
    read_log,
    record,
)
from snapfs.live.intents.intents_mark import FILE_BYTES, HEADER_BYTES, SLOTS, IntentsMark, read_claims, word
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree

FILES = 4
PATHS = ["python", *([] if datapath.why_not_native() else ["native"])]


def opened(folder: Path, data_path: str) -> LiveTree:
    names = Namespace(str(folder / "namespace.db"), Disk())
    return LiveTree(str(folder), names, Disk(), boot_id="boot", data_path=data_path)


def make_history(folder: Path, data_path: str) -> None:
    """Old files change: some before a cut whose snapshot never comes, some after it, so that two logs count."""
    tree = opened(folder, data_path)
    inos = [tree.mknod(ROOT_INO, b"%d" % n, stat.S_IFREG | 0o600, 0, 0, 0).ino for n in range(FILES)]
    for ino in inos:
        tree.write(ino, 0, b"old" * 9000)
    tree.cut().finish(True)
    tree.tidy()
    tree.sync_soon()
    for number, ino in enumerate(inos):
        if number == FILES // 2:
            tree.cut()
        tree.prepare_write(ino)
        tree.write(ino, 5000, b"new")


@pytest.fixture(scope="module", params=PATHS)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A live tree as a kill leaves it, and its data path."""
    folder = tmp_path_factory.mktemp("killed") / "live"
    folder.mkdir()
    child = os.fork()
    if not child:
        make_history(folder, request.param)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return folder, request.param


def logs(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "intents").iterdir() if path.stat().st_size)


def changed(folder: Path, data_path: str) -> tuple[int, list[str]]:
    """How many files the next snapshot has, and the lines of recovery about damage."""
    tree = opened(folder, data_path)
    try:
        tree.check_invariants()
        cut = tree.cut()
        found = len(set(cut.changed_files()))
        cut.finish(True)
        return found, [line for line in tree.recovered if "all files are compared" in line]
    finally:
        tree.close()


def damaged_copies(killed: Path, scratch: Path) -> list[Path]:
    """A copy for each border between two records of each log, and for each log that is gone."""
    made: list[Path] = []
    for log in logs(killed):
        for size in (None, 0, *range(HEADER_SIZE, log.stat().st_size, RECORD_SIZE)):
            copy = Path(shutil.copytree(killed, scratch / f"{log.stem}-{size}"))
            if size is None:
                (copy / "intents" / log.name).unlink()
            else:
                os.truncate(copy / "intents" / log.name, size)
            made.append(copy)
    return made


def test_whole_logs_are_believed(killed: tuple[Path, str], tmp_path: Path) -> None:
    live, data_path = killed
    copy = Path(shutil.copytree(live, tmp_path / "live"))
    assert len(logs(copy)) == 2
    counts = read_claims(str(copy / "intents-mark"), "boot")
    assert counts == {int(log.stem, 16): (log.stat().st_size - HEADER_SIZE) // RECORD_SIZE for log in logs(copy)}
    assert changed(copy, data_path) == (FILES, [])
    assert changed(copy, data_path) == (0, []), "closed in order"


def test_every_truncation_between_records_and_every_lost_log_is_noticed(
    killed: tuple[Path, str], tmp_path: Path
) -> None:
    live, data_path = killed
    copies = damaged_copies(live, tmp_path)
    assert len(copies) > 8
    for copy in copies:
        found, repairs = changed(copy, data_path)
        assert (found, len(repairs)) == (FILES, 1), (copy.name, repairs)


def test_a_mark_that_cannot_be_read_has_all_files_compared(killed: tuple[Path, str], tmp_path: Path) -> None:
    live, data_path = killed
    for size in (None, 0, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 16, FILE_BYTES - 1, FILE_BYTES + 1):
        copy = Path(shutil.copytree(live, tmp_path / str(size)))
        if size is None:
            (copy / "intents-mark").unlink()
        else:
            os.truncate(copy / "intents-mark", size)
        found, repairs = changed(copy, data_path)
        assert found == FILES
        assert len(repairs) == 2, "one line for each log"
        assert changed(copy, data_path) == (0, []), "the next life has a mark again"


class Stopping(Disk):
    """Ends the process before its step number `left`."""

    left = 0

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> None:
        self.step()
        super().pwrite(label, fd, data, offset)

    def unlink(self, label: str, path: str) -> None:
        self.step()
        super().unlink(label, path)

    def fdatasync(self, label: str, fd: int) -> None:
        self.step()
        super().fdatasync(label, fd)

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os._exit(9)


def test_recovery_that_is_killed_does_not_make_a_cut_log_good(killed: tuple[Path, str], tmp_path: Path) -> None:
    """Invariant 5 of intents_mark.py: a kill before each step of the first attempt, with the mark and without."""
    live, data_path = killed
    kills = 0
    for steps in range(10):
        copy = Path(shutil.copytree(live, tmp_path / str(steps)))
        os.truncate(logs(copy)[-1], HEADER_SIZE)
        if steps % 2:
            (copy / "intents-mark").unlink()
        child = os.fork()
        if not child:
            disk = Stopping()
            disk.left = steps
            names = Namespace(str(copy / "namespace.db"), Disk())
            LiveTree(str(copy), names, disk, boot_id="boot", data_path=data_path)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(status) in (0, 9)
        kills += os.waitstatus_to_exitcode(status) == 9
        assert changed(copy, data_path)[0] == FILES, steps
    assert kills > 4


def test_every_flip_of_the_mark_is_noticed_or_harmless(tmp_path: Path) -> None:
    """Exhaustive over the header and the slots in use; a flip in a free slot is noticed, too."""
    path = tmp_path / "intents-mark"
    mark = IntentsMark(str(path))
    mark.begin("boot")
    mark.claim(1, 5)
    mark.claim(2, 700)
    whole = path.read_bytes()
    assert read_claims(str(path), "boot") == {1: 5, 2: 700}
    assert read_claims(str(path), "another") == {}
    silent = 0
    for at in range(HEADER_BYTES + 48):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            claims = read_claims(str(path), "boot")
            assert claims is None or claims == {1: 5, 2: 700}, (at, bit)
            silent += claims is not None
    assert silent == 8 * (HEADER_BYTES - intents_mark.HEADER.size - 4) + 64, "padding; the number of a free slot"


def test_a_log_of_an_earlier_version_needs_no_mark(tmp_path: Path) -> None:
    folder = tmp_path / "intents"
    folder.mkdir()
    path = folder / f"{1:016x}.log"
    path.write_bytes(pack_header("boot", Epoch(1), Ino(9)) + record(IntentKind.LIST, 3))
    story = read_log(str(path))
    assert story is not None
    intents_mark.judge(str(folder), "boot", [story])
    assert not story.damaged
    path.write_bytes(pack_header("boot", Epoch(1), Ino(9), marked=True) + record(IntentKind.LIST, 3))
    story = read_log(str(path))
    assert story is not None
    assert story.marked
    intents_mark.judge(str(folder), "boot", [story])
    assert story.damaged


def test_each_flip_of_what_says_that_there_is_a_mark_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    whole = pack_header("boot", Epoch(1), Ino(9), marked=True)
    at = whole.index(MARKED)
    for bit in range(8 * len(MARKED)):
        data = bytearray(whole)
        data[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        story = read_log(str(path))
        assert story is not None
        assert story.damaged


def test_with_all_slots_taken_a_log_goes_without(tmp_path: Path) -> None:
    mark = IntentsMark(str(tmp_path / "intents-mark"))
    mark.begin("boot")
    slots = [mark.claim(number + 1, 0) for number in range(SLOTS)]
    assert all(slot is not None for slot in slots)
    assert mark.claim(SLOTS + 1, 0) is None
    first = slots[0]
    assert first is not None
    first[1] = 0
    assert mark.claim(SLOTS + 2, 0) is not None


@pytest.mark.parametrize("name", PATHS)
def test_both_data_paths_count_alike(tmp_path: Path, name: str) -> None:
    types: DataPath = datapath.choose(name)
    mark = IntentsMark(str(tmp_path / "intents-mark"))
    mark.begin("boot")
    fd = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    log = types.log_file(fd, Disk())
    log.append(bytes(HEADER_SIZE))
    slot = mark.claim(77, 0)
    assert slot is not None
    log.note_in(slot, 77)
    for count in range(5):
        assert list(slot) == [77, word(77, count)]
        log.append(record(IntentKind.LIST, 4))
    log.close()
    assert struct.unpack_from("=QQ", (tmp_path / "intents-mark").read_bytes(), HEADER_BYTES) == (77, word(77, 5))
