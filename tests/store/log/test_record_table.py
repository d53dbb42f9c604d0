"""The packed records of a history behave as a plain list of them, and little work is done for one of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.log import snapshot_records
from snapfs.store.log.catalog import Catalog
from snapfs.store.log.record_table import RECENT, RecordTable
from snapfs.store.log.snapshot_records import (
    APPLICATION,
    DAMAGED,
    GOOD,
    AskedBy,
    CutFacts,
    SealStats,
    SnapshotRecord,
)
from snapfs.store.objects.format import Pointer


def record(number: int, name: str | None = None, rng: random.Random | None = None) -> SnapshotRecord:
    chance = rng or random.Random(number)
    return SnapshotRecord(
        SnapshotNumber(number), name, Generation(chance.randrange(1 << 16)),
        chance.choice([None, SnapshotNumber(max(number - 1, 1))]),
        chance.randrange(1 << 62), -chance.randrange(1 << 62),
        chance.choice(["interval", "control", "", "ä"]),
        Pointer(Number(chance.randrange(1, 1 << 64)), chance.randbytes(16)), Number(number * 10 + 1),
        SealStats(*(chance.randrange(1 << 40) for _ in range(6)), seal_seconds=chance.random()),
        ciphertext=chance.choice(["", "00ff"]), cut=chance.choice([CutFacts(), CutFacts(APPLICATION, held_s=0.5)]),
        by=chance.choice([None, AskedBy(0, (1 << 32) - 1, 7)]),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_packed_and_unpacked_a_record_is_what_it_was(seed: int) -> None:
    rng = random.Random(seed)
    made = record(rng.randrange(1, 1 << 60), rng.choice([None, "name", "ü" * 80]), rng)
    for again in (
        snapshot_records.unpack(snapshot_records.pack(made), made.number, made.root),
        snapshot_records.from_fields(snapshot_records.to_fields(made)),
    ):
        assert (again, again.by) == (made, made.by)


@pytest.mark.parametrize(
    "fields",
    [
        {"cut_time_ns": 1 << 63},
        {"number": 1 << 64},
        {"parent": 1 << 64},
        {"stats": {"files": 1 << 70}},
        {"number": 0},
        {"by": {"uid": 1 << 70, "gid": 0, "pid": 0}},
        {"by": "root"},
    ],
)
def test_a_field_out_of_its_range_is_no_record(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        snapshot_records.from_fields(snapshot_records.to_fields(record(3)) | fields)


@pytest.mark.parametrize("seed", range(6))
def test_the_table_is_a_sorted_list(seed: int) -> None:
    rng = random.Random(seed)
    table, model = RecordTable(), dict[int, SnapshotRecord]()
    for _ in range(400):
        number = rng.randrange(1, 120)
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                model[number] = record(number, rng.choice([None, "a", "b"]), rng)
                table.put(model[number])
            case 4 | 5:
                model.pop(number, None)
                table.remove(SnapshotNumber(number))
            case 6 if not rng.randrange(20):
                model.clear()
                table.clear()
        _assert_same(table, model, number)
    table.check_invariants()


def _assert_same(table: RecordTable, model: dict[int, SnapshotRecord], number: int) -> None:
    everything = [model[each] for each in sorted(model)]
    assert table.page() == everything
    assert table.page(number, 3) == [each for each in everything if each.number > number][:3]
    assert table.numbers(number) == [each.number for each in everything if each.number > number]
    assert table.roots() == [(each.number, each.root.number) for each in everything]
    assert (len(table), list(table)) == (len(model), sorted(model))
    assert (number in table, table.get(number)) == (number in model, model.get(number))
    assert table.root(number) == (model[number].root if number in model else None)
    assert table.newest() == max(model, default=None)
    assert table.newest(number) == max((each for each in model if each < number), default=None)
    for name in ("a", "b", "c"):
        assert table.newest_named(name) == max((n for n, each in model.items() if each.name == name), default=None)


@pytest.mark.parametrize("seed", range(4))
def test_the_catalog_is_a_plain_list(seed: int) -> None:
    """Paging the catalog changes nothing of what it returns."""
    rng = random.Random(seed)
    catalog, model = Catalog("store", "ab" * 16), dict[int, SnapshotRecord]()
    unreadable: set[int] = set()
    for step in range(300):
        seen, touched = catalog.changes, set[int]()
        number = rng.randrange(1, 200) if rng.randrange(2) else step + 1
        match rng.randrange(6):
            case 0 | 1 | 2:
                model[number] = record(number, rng.choice([None, None, "x"]), rng)
                catalog.add(model[number])
                touched.add(number)
            case 3:
                model.pop(number, None)
                unreadable.discard(number)
                catalog.remove(SnapshotNumber(number))
            case 4 if number in model:
                state = rng.choice([GOOD, DAMAGED])
                model[number] = replace(model[number], state=state)
                catalog.set_state(SnapshotNumber(number), state)
                assert catalog.recorded_state(SnapshotNumber(number)) == state
                touched.add(number)
            case 5 if number in model:
                assert catalog.set_readable(SnapshotNumber(number), False) == (number not in unreadable)
                touched |= {number} - unreadable
                unreadable.add(number)
        reported = catalog.changed_since(seen)
        assert reported is not None
        assert touched <= reported <= {number}
        wanted = [each.with_state(DAMAGED) if n in unreadable else each for n, each in sorted(model.items())]
        assert catalog.snapshots() == list(catalog.pages()) == list(catalog.newest_first())[::-1] == wanted
        assert catalog.latest() == (wanted[-1] if wanted else None)
        assert catalog.damaged() == [each for each in wanted if each.state == DAMAGED]
        named = [each for each in wanted if each.name == "x"]
        assert catalog.is_taken("x") == bool(named)
        if named:
            assert catalog.find("x") == named[-1]
            with pytest.raises(UserError, match=f"snapshot {named[-1].number} "):
                catalog.next_number("x")
    catalog.check_invariants()


def test_what_was_forgotten_of_changes_is_not_taken_for_no_change() -> None:
    catalog = Catalog("store", "ab" * 16)
    before = catalog.changes
    for number in range(1, 6000):
        catalog.add(record(number))
    assert catalog.changed_since(before) is None
    assert catalog.changed_since(catalog.changes - 2) == {5998, 5999}
    before = catalog.changes
    catalog.clear()
    assert catalog.changed_since(before) is None


def test_of_a_long_history_few_records_are_decoded_for_one() -> None:
    """What is read with each snapshot, step or status is no matter of how long the history is."""
    catalog = Catalog("store", "ab" * 16)
    for number in range(1, 3001):
        catalog.add(record(number, f"n{number}" if number % 50 == 0 else None))
    assert catalog.decoded == 0, "taking them in decodes none"
    catalog.latest()
    catalog.find("1500")
    catalog.find("n1000")
    catalog.next_number("new")
    catalog.add(record(3001))
    assert 2999 in catalog
    assert len(catalog) == 3001
    assert catalog.root(17) == record(17).root
    assert catalog.damaged() == []
    assert [each.number for each in catalog.pages(2990)] == list(range(2991, 3002))
    assert catalog.decoded <= 3 + 11
    assert next(iter(catalog.pages(10))).number == 11
    assert catalog.decoded <= 3 + 11 + 64, "a page, not all"
    for number in range(1, 3001):
        catalog.get(number)
    assert len(catalog._table._recent) == RECENT
