"""store/needed of an encrypted store: a frame that is damaged is named, and not taken for a torn end.

It was cut off there, with all frames behind it, and no caller missed what they record.
"""

from __future__ import annotations

from pathlib import Path

from snapfs.base.blocks import Disk, Number
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.repository.required_objects import RequiredObjects


def made(folder: Path) -> RequiredObjects:
    needed = RequiredObjects(str(folder), Disk())
    for snapshot in (1, 2, 3):
        needed.append(snapshot, range(snapshot * 10, snapshot * 10 + 5))
    return needed


def test_every_flip_is_named(tmp_path: Path) -> None:
    needed, path = made(tmp_path), tmp_path / "needed"
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            assert "set aside" in needed.open(lambda snapshot: snapshot <= 3, 3), (at, bit)
            assert "needed.damaged" in needed.damage
            (tmp_path / "needed.damaged").unlink()


def test_every_truncation_of_what_was_committed_is_named_and_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    needed, path = made(tmp_path), tmp_path / "needed"
    whole = path.read_bytes()
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        ends = [end for _, end, _, _ in needed._frames()]
        finding = needed.open(lambda snapshot: snapshot <= 3, 3)
        assert finding, size
        path.write_bytes(whole[:size])
        (tmp_path / "needed.damaged").unlink(missing_ok=True)
        assert not needed.open(lambda snapshot: snapshot <= 3, len(ends)), size
        assert path.stat().st_size == max([0, *ends]), "it was never committed"


def test_the_writer_who_lists_all_that_lives_ends_it(tmp_path: Path) -> None:
    needed, path = made(tmp_path), tmp_path / "needed"
    path.write_bytes(b"\0" * 40)
    assert needed.open(lambda snapshot: True, 3)
    live = NumberSet()
    for number in (10, 20, 33):
        live.add(number)
    needed.keep(live)
    assert not needed.damage
    assert [Number(number) for number in needed.numbers()] == [10, 20, 33]
