"""Who may claim: the rule as a table, and in every state of a small world of hosts that take over and roll back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from snapfs.base.blocks import Generation
from snapfs.store.log.claims import ClaimWriter, Succession, is_fenced, taken_over_in, went_on_from, with_succession

OURS, OTHER = "host-a", "host-b"


@pytest.mark.parametrize(
    ("generation", "taken_over", "there", "writer_id", "fenced"),
    [
        (1, 0, 0, "", False),  # no writer has claimed
        (1, 0, 1, OURS, False),  # we have
        (3, 0, 1, OURS, False),  # we have rolled back since
        (1, 0, 2, OURS, True),  # this volume is an old copy of ours
        (1, 0, 2, OTHER, True),
        (1, 0, 1, OTHER, True),  # a copy of the volume at another place
        (4, 0, 2, OTHER, True),  # rolled back while another took over: a higher number is no right
        (2, 2, 1, OTHER, False),  # we took over, and this mirror does not know it yet
        (3, 2, 1, OTHER, False),
        (2, 2, 2, OTHER, True),  # both took over
        (2, 2, 3, OTHER, True),
        (5, 2, 3, OTHER, True),
    ],
)
def test_who_stands_in_the_way(generation: int, taken_over: int, there: int, writer_id: str, fenced: bool) -> None:
    ours = ClaimWriter(Generation(generation), OURS, Generation(taken_over))
    assert is_fenced(ours, Generation(there), writer_id) is fenced


def test_the_last_takeover_counts() -> None:
    kinds = [("created", 9), ("remounted", 2), ("claimed", 8), ("taken-over", 4), ("rollback", 7)]
    events = [SimpleNamespace(kind=kind, fields={"generation": generation}) for kind, generation in kinds]
    assert taken_over_in(events) == 4
    assert taken_over_in([]) == 0


@dataclass(frozen=True)
class World:
    """One mirror; two hosts, of which `b` has no volume before it takes over. `writers`: who took over, in order."""

    there: tuple[int, str] = (0, "")
    hosts: tuple[ClaimWriter, ...] = (ClaimWriter(Generation(1), "a"), ClaimWriter(Generation(0), "b"))
    writers: tuple[str, ...] = ("a",)


HIGHEST = 5


def _next(world: World) -> Iterator[World]:
    """Rollbacks, claims of agents, and takeovers: anything that anybody may do next."""
    for place, host in enumerate(world.hosts):
        if host.generation and host.generation < HIGHEST:
            yield _with(world, place, replace(host, generation=Generation(host.generation + 1)))
        if host.generation and not is_fenced(host, Generation(world.there[0]), world.there[1]):
            yield replace(world, there=(host.generation, host.writer_id))
        taken = max(world.there[0], host.generation) + 1
        if taken <= HIGHEST and world.there[0]:
            after = _with(world, place, ClaimWriter(Generation(taken), host.writer_id, Generation(taken)))
            yield replace(after, there=(taken, host.writer_id), writers=(*world.writers, host.writer_id))


def _with(world: World, place: int, host: ClaimWriter) -> World:
    hosts = list(world.hosts)
    hosts[place] = host
    return replace(world, hosts=tuple(hosts))


def test_nobody_but_who_took_over_last_ever_holds_the_mirror() -> None:
    """Whatever anybody rolls back, the mirror's writer changes by a takeover and by nothing else."""
    begun = replace(World(), there=(1, "a"))
    seen, todo = {begun}, deque([begun])
    while todo:
        world = todo.popleft()
        assert world.there[1] == world.writers[-1], world
        for after in _next(world):
            assert after.there[0] >= world.there[0]
            if after not in seen:
                seen.add(after)
                todo.append(after)
    assert len(seen) > 300
    assert {len(world.writers) for world in seen} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ([], 0),
        ([(2, "b", 7)], 7),
        ([(2, "b", 7), (3, "c", 5)], 5),
        ([(2, "b", 7), (3, "b", 7), (4, "c", 12)], 7),
        ([(2, "a", 3), (3, "b", 9)], 9),
    ],
)
def test_what_the_winners_went_on_from(recorded: list[tuple[int, str, int]], expected: int) -> None:
    """The least of all that took over since: what is below it is in the past of each of them."""
    successions = [Succession(*each) for each in recorded]
    assert went_on_from(ClaimWriter(Generation(1), "a"), successions) == expected


def test_a_takeover_before_ours_is_no_matter() -> None:
    recorded = [Succession(2, "b", 4), Succession(3, "a", 6), Succession(4, "c", 8)]
    assert went_on_from(ClaimWriter(Generation(3), "a", Generation(3)), recorded) == 8


def test_a_claim_that_is_recorded_again_counts_as_recorded_last() -> None:
    recorded = with_succession(with_succession([], Succession(2, "b", 7)), Succession(2, "b", 9))
    assert recorded == [Succession(2, "b", 9)]
    assert with_succession(recorded, Succession(2, "b", 0)) == recorded
