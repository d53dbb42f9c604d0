"""What is said of a held file that does not hold what was written: enough to find the cause."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.mounts.held_files import HeldFile, change, differing_runs, new_file


def at_once(operation: Callable[[], Any]) -> Any:
    return operation()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[HeldFile]:
    held = new_file(str(tmp_path / "held"), at_once)
    yield held
    os.close(held.fd)


def test_a_sound_file_passes(file: HeldFile) -> None:
    for number in range(60):
        change(file, number, random.Random(number))
        file.check(number)


def test_words_show_what_stands_where(file: HeldFile) -> None:
    file.write(1, 0, b"a" * 10_000)
    file.write(2, 2_000, b"b" * 1_000)
    file.sync(2)
    os.pwrite(file.fd, b"a" * 1_000, 2_000)
    os.pwrite(file.fd, b"\0" * 50, 6_000)
    os.pwrite(file.fd, b"?" * 50, 8_000)
    with pytest.raises(AssertionError) as raised:
        file.check(3)
    words = str(raised.value)
    assert "operation 3: 10000 bytes were read of 10000" in words
    assert "3 ranges differ, the first byte at 2000, the last at 8049" in words
    assert "[2000, 3000): as after operation 1" in words
    assert "[6000, 6050): zeros" in words
    assert "[8000, 8050): unknown, begins 3f3f" in words
    assert "a second read: the same; after DONTNEED: the same" in words
    assert "operation 2: fsync" in words.splitlines()[-1]


def test_words_show_a_wrong_length(file: HeldFile) -> None:
    file.write(1, 0, b"a" * 5_000)
    os.ftruncate(file.fd, 4_000)
    with pytest.raises(AssertionError, match=r"4000 bytes were read of 5000; inode \d+ has 4000"):
        file.check(2)


def test_runs_are_divided_by_enough_equal_bytes() -> None:
    model = bytes(1000)
    found = bytearray(model)
    found[10] = found[60] = found[500] = 1
    assert list(differing_runs(bytes(found), model)) == [(10, 61), (500, 501)]
