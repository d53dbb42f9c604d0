"""Radix tables against plain dicts: every version stays what it was, and shares what it can."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import Number
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables import radix
from snapfs.store.tables.table_pages import Pages
from tests.fakes.histories.objects import MemoryObjects

Table = tuple[Pointer, int]
EMPTY: Table = (NULL, 0)


def leaf(value: int) -> Pointer:
    """A pointer to something that these tests never read."""
    return Pointer(Number(1 << 40 | value), value.to_bytes(16, "little")) if value else NULL


class Tables:
    """A store with radix tables in it."""

    def __init__(self) -> None:
        self.objects = MemoryObjects()
        self.pages = Pages(self.objects, cache_bytes=20_000)

    def update(self, table: Table, changes: Iterable[tuple[int, int]], limit: int = 1 << 48) -> Table:
        stream = ((index, leaf(value)) for index, value in changes)
        return radix.update(self.pages, self.objects, ObjectKind.MAP_PAGE, table, stream, limit=limit)

    def items(self, table: Table, first: int = 0, stop: int | None = None) -> dict[int, Pointer]:
        return dict(radix.items(self.pages, *table, first, stop))

    def reads_of(
        self, table: Table, changes: Iterable[tuple[int, int]], limit: int = 1 << 48
    ) -> tuple[Table, int, int]:
        """(the updated table, pages read, pages written)."""
        self.pages = Pages(self.objects)
        self.objects.reads.clear()
        written = len(self.objects.plain)
        table = self.update(table, changes, limit)
        return table, len(self.objects.reads), len(self.objects.plain) - written


INDICES = st.one_of(
    st.integers(0, 200), st.integers(0, 5000), st.integers(0, (1 << 47) - 1), st.sampled_from([0, 63, 64, 4095, 4096])
)
CHANGES = st.dictionaries(INDICES, st.integers(0, 5), max_size=40)
STEPS = st.lists(st.tuples(CHANGES, st.one_of(st.none(), INDICES)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_every_version_equals_its_dict_and_stays_so(steps: list[tuple[dict[int, int], int | None]]) -> None:
    tables = Tables()
    table, model = EMPTY, dict[int, int]()
    versions = [(table, model)]
    for changes, limit in steps:
        cut = 1 << 48 if limit is None else limit
        table = tables.update(table, sorted(changes.items()), cut)
        model = {index: value for index, value in {**model, **changes}.items() if value and index < cut}
        versions.append((table, model))
    for table, model in versions:
        expected = {index: leaf(model[index]) for index in sorted(model)}
        assert list(tables.items(table).items()) == list(expected.items())
        assert table[1] == height_of(model)
        for index in [0, 1, 63, 64, 4096, *model]:
            assert radix.lookup(tables.pages, *table, index) == expected.get(index, NULL)
    tables.pages.check_invariants()


def height_of(model: dict[int, int]) -> int:
    """The smallest height that covers the last index that is no hole."""
    height = 0
    while max(model, default=0) >> 6 * height:
        height += 1
    return height


@settings(max_examples=100, deadline=None)
@given(CHANGES, INDICES, INDICES)
def test_a_range_is_a_slice_of_the_whole(changes: dict[int, int], first: int, stop: int) -> None:
    tables = Tables()
    table = tables.update(EMPTY, sorted(changes.items()))
    expected = {index: pointer for index, pointer in tables.items(table).items() if first <= index < stop}
    assert tables.items(table, first, stop) == expected


@settings(max_examples=100, deadline=None)
@given(CHANGES, CHANGES)
def test_equal_tables_have_equal_pages_whatever_came_between(before: dict[int, int], other: dict[int, int]) -> None:
    direct, roundabout = Tables(), Tables()
    first = direct.update(EMPTY, sorted(before.items()))
    table = roundabout.update(EMPTY, sorted({**before, **other}.items()))
    back = {index: before.get(index, 0) for index in other}
    second = roundabout.update(table, sorted(back.items()))
    assert first[1] == second[1]
    assert direct.items(first) == roundabout.items(second)
    if first[1] == 1:
        assert direct.objects.plain[first[0].number] == roundabout.objects.plain[second[0].number]


def test_no_change_writes_nothing_and_keeps_the_pointer() -> None:
    tables = Tables()
    table = tables.update(EMPTY, [(index, index + 1) for index in range(5000)])
    same, _, written = tables.reads_of(table, [(7, 8), (4097, 4098)])
    assert (same, written) == (table, 0)


@pytest.mark.parametrize(
    ("changes", "limit", "reads", "writes"),
    [
        pytest.param([(100_000, 9)], 1 << 48, 3, 3, id="one change: one page a level"),
        pytest.param([(100_000, 9), (100_001, 9)], 1 << 48, 3, 3, id="two neighbours: the same pages"),
        pytest.param([(0, 9), (199_999, 9)], 1 << 48, 5, 5, id="both ends"),
        pytest.param([(200_000, 9)], 1 << 48, 2, 3, id="appended, into a new page at the bottom"),
        pytest.param([], 100_000, 3, 3, id="cut in the middle"),
        pytest.param([], 4096, 2, 0, id="cut where a page ends: the new top is shared"),
        pytest.param([], 0, 0, 0, id="cut to nothing"),
        pytest.param(
            [(1 << 40, 9)],
            1 << 48,
            1,
            10,
            id="far beyond the end: a path of six, three above the old top, and one over all",
        ),
    ],
)
def test_an_update_touches_only_what_is_on_its_way(
    changes: list[tuple[int, int]], limit: int, reads: int, writes: int
) -> None:
    tables = Tables()
    table = tables.update(EMPTY, [(index, index + 1) for index in range(200_000)])
    _, pages_read, pages_written = tables.reads_of(table, changes, limit)
    assert (pages_read, pages_written) == (reads, writes)


def test_a_rewritten_page_has_its_former_version_as_base() -> None:
    tables = Tables()
    first = tables.update(EMPTY, [(index, index + 1) for index in range(64 * 64)])
    before = set(tables.objects.plain)
    second = tables.update(first, [(70, 1)])
    bases = {number: base for number, base in tables.objects.bases.items() if number not in before}
    assert bases[second[0].number] == first[0]
    assert len(bases) == 2
    assert None not in bases.values()


def test_changes_are_taken_one_at_a_time() -> None:
    tables = Tables()

    def changes() -> Iterable[tuple[int, int]]:
        for index in range(0, 64 * 64 * 4, 64):
            assert len(tables.objects.plain) >= index // 64 - 1
            yield index, 1

    table = tables.update(EMPTY, changes())
    assert len(tables.items(table)) == 256


def test_disorder_is_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        Tables().update(EMPTY, [(2, 1), (1, 1)])
    with pytest.raises(ValueError, match="ascend"):
        Tables().update(EMPTY, [(2, 1), (2, 1)])


GOOD_PAGE = radix.encode_map(1, [leaf(1), NULL, leaf(2)])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"", id="empty"),
        pytest.param(GOOD_PAGE[:-1], id="short"),
        pytest.param(GOOD_PAGE + b"\0", id="long"),
        pytest.param(b"\x02" + GOOD_PAGE[1:], id="of another type"),
        pytest.param(GOOD_PAGE[:2] + b"\x02" + GOOD_PAGE[3:], id="of another level"),
        pytest.param(GOOD_PAGE[:2] + b"\0" + GOOD_PAGE[3:], id="of level 0"),
        pytest.param(GOOD_PAGE[:4] + b"\xff\xff\xff\xff" + GOOD_PAGE[8:], id="with a huge count"),
        pytest.param(GOOD_PAGE[:4] + bytes(4), id="without rows"),
        pytest.param(GOOD_PAGE[:-24] + bytes(24), id="ending in a hole"),
    ],
)
def test_a_damaged_page_is_named(page: bytes) -> None:
    tables = Tables()
    pointer = tables.objects.put_page(ObjectKind.MAP_PAGE, page, None) if page else NULL
    tables.objects.plain.setdefault(pointer.number, page)
    if not page:
        pointer = Pointer(Number(0x77), tables.objects._content_hash(b""))
        tables.objects.plain[0x77] = b""
    with pytest.raises(CorruptionError, match=f"{pointer.number:016x}"):
        tables.items((pointer, 1))


def test_a_later_layout_is_refused_as_such() -> None:
    tables = Tables()
    pointer = tables.objects.put_page(ObjectKind.MAP_PAGE, GOOD_PAGE[:1] + b"\x02" + GOOD_PAGE[2:], None)
    with pytest.raises(VersionError):
        tables.items((pointer, 1))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 100), st.binary(min_size=1, max_size=4))
def test_any_bytes_are_a_page_or_damaged(tail: bytes, position: int, patch: bytes) -> None:
    for page in (tail, GOOD_PAGE[:8] + tail, GOOD_PAGE[:position] + patch + GOOD_PAGE[position + len(patch) :]):
        try:
            radix.decode_map(Pointer(Number(5), bytes(16)), page)
        except (CorruptionError, VersionError):
            continue
