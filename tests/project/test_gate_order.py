"""Long files run first, so that no worker is left with one when the others have ended."""

from __future__ import annotations

from pathlib import Path, PurePath

from tests.fakes import gate_order

TESTS = Path(__file__).resolve().parents[1]


def test_the_longest_first_by_number_and_room() -> None:
    files = [PurePath(name) for name in ("store/a", "apps/one", "store/b", "store/b", "mount/long")]
    places = gate_order.order(files)
    assert sorted(places, key=lambda file: places[file]) == [
        PurePath(name) for name in ("apps/one", "mount/long", "store/b", "store/a")
    ]


def test_every_named_room_and_file_exists() -> None:
    rooms = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert set(gate_order.TEST_S) <= rooms
    assert all((TESTS / name).exists() for name in gate_order.FILE_S)
