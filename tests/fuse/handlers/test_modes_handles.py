"""When setuid and setgid go, and what a file handle carries."""

from __future__ import annotations

import itertools
import stat

import pytest

from snapfs.base.blocks import Ino
from snapfs.fuse.handlers import file_handles
from snapfs.fuse.handlers.flush_cost import CHEAP_SECONDS, SMALL_BYTES, FlushCost
from snapfs.fuse.handlers.name_handlers import bound_of, tag_of
from snapfs.fuse.nodes import modes
from snapfs.fuse.nodes.node_ids import is_virtual
from snapfs.live.database.namespace_rows import INO_LIMIT


@pytest.mark.parametrize(
    ("mode", "weaker"),
    [
        (stat.S_IFREG | 0o4755, stat.S_IFREG | 0o755),
        (stat.S_IFREG | 0o2755, stat.S_IFREG | 0o755),
        (stat.S_IFREG | 0o6711, stat.S_IFREG | 0o711),
        (stat.S_IFREG | 0o2644, stat.S_IFREG | 0o2644),  # mandatory locking, no privilege
        (stat.S_IFREG | 0o6644, stat.S_IFREG | 0o2644),
        (stat.S_IFREG | 0o1644, stat.S_IFREG | 0o1644),
        (stat.S_IFDIR | 0o6777, stat.S_IFDIR | 0o6777),
    ],
)
def test_without_privileges(mode: int, weaker: int) -> None:
    assert modes.without_privileges(mode) == weaker
    assert modes.is_privileged(mode) == (mode != weaker)


def test_a_handle_gives_back_what_went_in() -> None:
    seen = set()
    for ino, writing, privileged in itertools.product((1, 2, INO_LIMIT - 1), (False, True), (False, True)):
        fh = file_handles.handle(Ino(ino), writing=writing, privileged=privileged)
        assert file_handles.ino_of(fh) == ino
        assert file_handles.is_writing(fh) == writing
        assert file_handles.is_unprivileged(fh) == (writing and not privileged)
        assert not is_virtual(fh)
        seen.add(fh)
    assert len(seen) == 9  # a reader's privileges do not matter


def test_dear_flushes_leave_the_trio_thread_and_cheap_ones_return() -> None:
    cost = FlushCost()
    assert cost.is_cheap()
    cost.note(60.0)  # an outlier
    for _ in range(20):
        cost.note(CHEAP_SECONDS / 4)
    assert cost.is_cheap()
    for _ in range(5):
        cost.note(CHEAP_SECONDS * 5)
        cost.note(CHEAP_SECONDS * 2)
    assert not cost.is_cheap()
    for _ in range(20):
        cost.note(CHEAP_SECONDS / 4)
    assert cost.is_cheap()


def test_a_file_with_much_to_write_is_not_waited_for_on_the_spot() -> None:
    cost = FlushCost()
    cost.wrote(Ino(5), SMALL_BYTES)
    cost.wrote(Ino(6), SMALL_BYTES)
    cost.wrote(Ino(6), 1)
    assert cost.is_small(Ino(5))
    assert not cost.is_small(Ino(6))
    assert cost.is_small(Ino(6))  # that was written
    for ino in range(100_000):
        cost.wrote(Ino(ino), 1 << 30)
    assert sum(not cost.is_small(Ino(ino)) for ino in range(100_000)) < 10_000


@pytest.mark.parametrize("bound", [2, 3, 1000, (1 << 27) - 2, (1 << 27) - 1, 1 << 27, (1 << 36) - 1])
def test_the_bound_of_a_listing_is_found_again_from_its_offsets(bound: int) -> None:
    for made_since in (0, 1, 12345, (1 << 27) - 2):
        newest = bound + made_since
        if newest >> 36:
            continue
        for cookie in (1, 2, bound):
            assert bound_of(cookie | tag_of(bound), newest) == (cookie, bound)
    assert bound_of(77, 100)[0] == 77, "an offset that an earlier daemon gave"
    assert tag_of(1 << 36) == 0
