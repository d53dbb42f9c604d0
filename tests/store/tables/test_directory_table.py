"""Directories against plain dicts: every version stays what it was, and its shape depends on the names alone."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import Ino, Number
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.objects.format import NULL, ObjectKind, Pointer
from snapfs.store.tables import directory_table, directory_update
from snapfs.store.tables.directory_table import DirEntry
from snapfs.store.tables.table_pages import Pages
from tests.fakes.histories.objects import MemoryObjects

Model = dict[bytes, int]
REGULAR = 8


class Directories:
    def __init__(self) -> None:
        self.objects = MemoryObjects()
        self.pages = Pages(self.objects, cache_bytes=50_000)

    def update(self, root: Pointer, changes: dict[bytes, int | None]) -> Pointer:
        stream = ((name, entry(name, ino)) for name, ino in sorted(changes.items()))
        return directory_update.update(self.pages, self.objects, root, stream)

    def names(self, root: Pointer, after: bytes | None = None) -> Model:
        return {entry.name: entry.ino for entry in directory_table.entries(self.pages, root, after)}

    def shape(self, root: Pointer) -> list[tuple[int, list[bytes]]]:
        """Each page's level and names, in preorder."""
        if root.number == 0:
            return []
        page = directory_table.load(self.pages, root)
        below = page.branches if isinstance(page, directory_table.BranchPage) else []
        return [
            (directory_table.level_of(page), list(page.names)),
            *(step for branch in below for step in self.shape(branch.pointer)),
        ]

    def cost_of(self, root: Pointer, changes: dict[bytes, int | None]) -> tuple[Pointer, int, int]:
        """(the updated directory, pages read, pages written)."""
        self.pages = Pages(self.objects)
        self.objects.reads.clear()
        before = len(self.objects.plain)
        root = self.update(root, changes)
        return root, len(self.objects.reads), len(self.objects.plain) - before


def entry(name: bytes, ino: int | None) -> DirEntry | None:
    return None if ino is None else DirEntry(name, Ino(ino), REGULAR)


def numbered(count: int, width: int = 8) -> Model:
    return {b"%0*d" % (width, index): index + 1 for index in range(count)}


NAMES = st.one_of(
    st.integers(0, 3000).map(lambda number: b"%04d" % number),
    st.binary(min_size=1, max_size=255).map(
        lambda name: name.replace(b"/", b"x").replace(b"\0", b"y").replace(b".", b"z")
    ),
)
CHANGES = st.one_of(
    st.dictionaries(NAMES, st.one_of(st.none(), st.integers(1, 3)), max_size=30),
    st.tuples(st.integers(0, 3000), st.integers(0, 3000), st.sampled_from([None, 1, 2])).map(
        lambda span: {b"%04d" % number: span[2] for number in range(span[0], span[1])}
    ),
)


def applied(model: Model, changes: dict[bytes, int | None]) -> Model:
    merged = {**model, **changes}
    return {name: ino for name, ino in sorted(merged.items()) if ino is not None}


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, max_size=6))
def test_every_version_equals_its_dict_and_its_shape_comes_from_the_names(steps: list[dict[bytes, int | None]]) -> None:
    directories = Directories()
    root, model = NULL, Model()
    versions = [(root, model)]
    for changes in steps:
        root, model = directories.update(root, changes), applied(model, changes)
        versions.append((root, model))
    for root, model in versions:
        assert list(directories.names(root).items()) == list(model.items())
        afresh = directories.update(NULL, dict(model))
        assert directories.shape(root) == directories.shape(afresh)
        for name in list(model)[:50]:
            assert directory_table.lookup(directories.pages, root, name) == entry(name, model[name])
        assert directory_table.lookup(directories.pages, root, b"no such name") is None


@settings(max_examples=50, deadline=None)
@given(st.sets(NAMES, max_size=50), NAMES)
def test_listing_goes_on_after_any_name(names: set[bytes], after: bytes) -> None:
    directories = Directories()
    model: Model = {**numbered(500, 4), **dict.fromkeys(names, 9)}
    root = directories.update(NULL, dict(model))
    assert list(directories.names(root, after)) == [name for name in sorted(model) if name > after]


@pytest.mark.parametrize("count", [1, 15, 16, 80, 1000, 20_000])
def test_one_change_costs_a_few_pages(count: int) -> None:
    directories = Directories()
    root = directories.update(NULL, dict(numbered(count)))
    picked = random.Random(count)
    for _ in range(20):
        name = b"%08d" % picked.randrange(count)
        steps: list[dict[bytes, int | None]] = [{name: None}, {name + b"+": 7}, {name: 99_999}]
        for changes in steps:
            _, reads, writes = directories.cost_of(root, changes)
            assert reads <= 12
            assert writes <= 12


def test_unchanged_pages_are_shared() -> None:
    directories = Directories()
    root = directories.update(NULL, dict(numbered(20_000)))
    same, _, writes = directories.cost_of(root, {b"00012345": 12346, b"no": None})
    assert (same, writes) == (root, 0)
    _, reads, writes = directories.cost_of(root, {b"00012345": 1})
    assert writes == len([level for level, _ in directories.shape(root)[:1]]) + directories.shape(root)[0][0]
    assert reads == writes


def test_a_rewritten_page_has_its_former_version_as_base() -> None:
    directories = Directories()
    root = directories.update(NULL, dict(numbered(5_000)))
    before = len(directories.objects.plain)
    directories.update(root, {b"00000007": 1, b"00003000": None, b"00004000+": 3})
    new = [base for number, base in directories.objects.bases.items() if number > before]
    assert new
    assert None not in new


def test_pages_are_bounded_even_with_the_longest_names() -> None:
    directories = Directories()
    names = {(b"%06d" % index).ljust(255, b"n"): index + 1 for index in range(3000)}
    root = directories.update(NULL, dict(names))
    assert directories.names(root) == names
    assert max(map(len, directories.objects.plain.values())) <= 8 + directory_update.MAX_BYTES + 280


def test_names_that_never_split_a_page_by_themselves_still_do() -> None:
    unlucky = [name for name in (b"%d" % index for index in range(100_000)) if hash_bits(name, 6)][:5000]
    directories = Directories()
    root = directories.update(NULL, dict.fromkeys(sorted(unlucky), 1))
    assert max(len(names) for _, names in directories.shape(root)) <= directory_table.MAX_ROWS
    assert list(directories.names(root)) == sorted(unlucky)
    root = directories.update(root, {b"00": 5, unlucky[7]: None})
    assert list(directories.names(root)) == sorted({*unlucky, b"00"} - {unlucky[7]})


def hash_bits(name: bytes, bits: int) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(name) & ((1 << bits) - 1)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(b"b", 1), (b"a", 1)], id="descending"),
        pytest.param([(b"a", 1), (b"a", 1)], id="twice"),
        pytest.param([(b"", 1)], id="empty"),
        pytest.param([(b"x" * 256, 1)], id="too long"),
        pytest.param([(b"a/b", 1)], id="with a slash"),
        pytest.param([(b"a\0", 1)], id="with a zero"),
        pytest.param([(b"..", 1)], id="the one above"),
        pytest.param([(b".", 1)], id="itself"),
        pytest.param([(b"a", 0)], id="without an inode"),
    ],
)
def test_what_is_no_change_is_refused(changes: Iterable[tuple[bytes, int]]) -> None:
    directories = Directories()
    stream = ((name, entry(name, ino)) for name, ino in changes)
    with pytest.raises(ValueError):
        directory_update.update(directories.pages, directories.objects, NULL, stream)


GOOD = directory_table.encode_entries([DirEntry(b"a", Ino(3), REGULAR), DirEntry(b"bc", Ino(4), 4)])
BRANCHES = directory_table.encode_branches(1, [directory_table.Branch(b"a", Pointer(Number(9), bytes(16)))])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(GOOD[:-1], id="short"),
        pytest.param(GOOD + b"x", id="long"),
        pytest.param(GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], id="with a huge count"),
        pytest.param(GOOD[:4] + bytes(4), id="without entries"),
        pytest.param(GOOD[:-3] + b"cbc", id="not in order"),
        pytest.param(GOOD[:-3] + b"/bc", id="with a slash"),
        pytest.param(GOOD[:-3] + b"a\0c", id="with a zero"),
        pytest.param(GOOD[:-3] + b".bc", id="with itself"),
        pytest.param(GOOD[:-3] + b"!..", id="with the one above"),
        pytest.param(GOOD[:2] + b"\1" + GOOD[3:], id="of entries at level 1"),
        pytest.param(GOOD[:8] + bytes(8) + GOOD[16:], id="with an inode 0"),
        pytest.param(b"\x01" + GOOD[1:], id="of another type"),
        pytest.param(BRANCHES[:2] + b"\0" + BRANCHES[3:], id="of branches at level 0"),
        pytest.param(BRANCHES[:8] + bytes(8) + BRANCHES[16:], id="that points nowhere"),
        pytest.param(BRANCHES, id="of branches that point at nothing there is"),
    ],
)
def test_a_damaged_page_is_named(page: bytes) -> None:
    directories = Directories()
    pointer = directories.objects.put_page(ObjectKind.DIR_PAGE, page, None)
    with pytest.raises(CorruptionError):
        directories.names(pointer)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([GOOD, BRANCHES]), st.integers(0, 60), st.binary(min_size=1, max_size=4), st.binary(max_size=80))
def test_any_bytes_are_a_page_or_damaged(good: bytes, position: int, patch: bytes, tail: bytes) -> None:
    for page in (tail, good[:8] + tail, good[:position] + patch + good[position + len(patch) :]):
        try:
            directory_table.decode_page(Pointer(Number(5), bytes(16)), page)
        except (CorruptionError, VersionError):
            continue
