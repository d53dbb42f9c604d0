"""Fencing, checked in full: every state of a small world is walked through.

The world: three mirrors, two writers that each claim generations and then write, a network that delivers any message
ever sent, at any time, as often as it likes, and loses any answer. Mirrors are killed at will; what they had durably
stays, so that a kill is a lost answer. The writers act as in the protocol: request from mirrors their generation (each
answer may be old), claim the highest + 1, write when more than half have granted the claim.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pytest

from replicator.volumes import generation_rules
from replicator.volumes.generation_rules import Claimed, ClaimVerdict
from snapfs.base.blocks import Generation

MIRRORS = 3
MAJORITY = 2
WRITERS = ("a", "b")
HIGHEST = 2
"""Generation up to which writers claim."""


class Mirror(NamedTuple):
    claimed: Claimed = Claimed()
    effects: tuple[Claimed, ...] = ()
    """Whose writes took effect, in order; a repeated write changes nothing and is not listed twice."""


class Writer(NamedTuple):
    generation: int = 0  # the one it claims or has
    granted: frozenset[int] = frozenset()  # mirrors that granted it
    seen: frozenset[Claimed] = frozenset()  # whose writes they had then, as in these answers


class World(NamedTuple):
    mirrors: tuple[Mirror, ...] = (Mirror(),) * MIRRORS
    writers: tuple[Writer, ...] = (Writer(),) * len(WRITERS)
    claims: frozenset[Claimed] = frozenset()  # sent: each may arrive at any mirror, at any time, any number of times
    writes: frozenset[Claimed] = frozenset()


Item = TypeVar("Item")
Judge = Callable[[Claimed, Claimed], ClaimVerdict]


def steps(world: World, judge_claim: Judge, judge_write: Judge) -> Iterator[World]:
    for at, writer in enumerate(world.writers):
        yield from _request(world, at, writer)
        if len(writer.granted) >= MAJORITY:
            yield world._replace(writes=world.writes | {_name(at, writer.generation)})
    for place, mirror in enumerate(world.mirrors):
        for claim in world.claims:
            yield from _claim_arrives(world, place, mirror, claim, judge_claim)
        for write in world.writes:
            yield from _write_arrives(world, place, mirror, write, judge_write)


def _name(writer: int, generation: int) -> Claimed:
    return Claimed(Generation(generation), WRITERS[writer])


def _request(world: World, at: int, writer: Writer) -> Iterator[World]:
    """Begin anew, with any generation that some mirror's answer, maybe an old one, led to."""
    seen = max(mirror.claimed.generation for mirror in world.mirrors)
    for generation in range(writer.generation + 1, min(seen + 1, HIGHEST) + 1):
        changed = _with(world.writers, at, Writer(generation))
        yield world._replace(writers=changed, claims=world.claims | {_name(at, generation)})


def _claim_arrives(world: World, place: int, mirror: Mirror, claim: Claimed, judge: Judge) -> Iterator[World]:
    verdict = judge(mirror.claimed, claim)
    if verdict is ClaimVerdict.GRANTED:
        world = world._replace(mirrors=_with(world.mirrors, place, mirror._replace(claimed=claim)))
    yield world  # the answer is lost
    at = WRITERS.index(claim.writer_id)
    writer = world.writers[at]
    if writer.generation != claim.generation:
        return
    if verdict is ClaimVerdict.GRANTED:  # a refusal changes nothing: it may claim again, or not
        granted, seen = writer.granted | {place}, writer.seen | set(mirror.effects)
        yield world._replace(writers=_with(world.writers, at, writer._replace(granted=granted, seen=seen)))


def _write_arrives(world: World, place: int, mirror: Mirror, write: Claimed, judge: Judge) -> Iterator[World]:
    if judge(mirror.claimed, write) is not ClaimVerdict.GRANTED:
        return
    if write not in mirror.effects:
        mirror = mirror._replace(effects=(*mirror.effects, write))
        world = world._replace(mirrors=_with(world.mirrors, place, mirror))
    elif mirror.effects[-1] != write:  # an effect after another writer's: the order matters
        world = world._replace(mirrors=_with(world.mirrors, place, mirror._replace(effects=(*mirror.effects, write))))
    yield world


def _with(items: tuple[Item, ...], at: int, item: Item) -> tuple[Item, ...]:
    return (*items[:at], item, *items[at + 1 :])


def check(world: World) -> None:
    for mirror in world.mirrors:
        order = [effect.generation for effect in mirror.effects]
        assert order == sorted(order), "a write of an older generation took effect after a newer one's"
        assert len(set(mirror.effects)) == len(set(order)), "two holders of one generation wrote"
        assert all(effect.generation <= mirror.claimed.generation for effect in mirror.effects)
    majorities = [(writer.generation, at) for at, writer in enumerate(world.writers) if len(writer.granted) >= MAJORITY]
    held = Counter(generation for generation, _ in majorities)
    assert all(count == 1 for count in held.values()), "one generation, two writers with more than half"
    effective = Counter(effect for mirror in world.mirrors for effect in set(mirror.effects))
    durable = {effect for effect, count in effective.items() if count >= MAJORITY}
    assert len(durable) == len({effect.generation for effect in durable}), "both wrote one generation on more than half"
    for generation, at in majorities:
        older = {effect for effect in durable if effect.generation < generation}
        assert older <= world.writers[at].seen, "a new writer does not know what was acknowledged by more than half"


def check_step(before: World, after: World) -> None:
    for old, new in zip(before.mirrors, after.mirrors, strict=True):
        assert new.claimed.generation >= old.claimed.generation, "a generation fell"
        if new.effects != old.effects:
            assert new.effects[-1] == old.claimed, "another writer's write took effect"


def explore(judge_claim: Judge, judge_write: Judge) -> int:
    """Walk through all states; returns how many there are."""
    first = World()
    seen, pending = {first}, deque([first])
    while pending:
        world = pending.popleft()
        for after in steps(world, judge_claim, judge_write):
            if after in seen:
                continue
            check(after)
            check_step(world, after)
            seen.add(after)
            pending.append(after)
    return len(seen)


def test_every_state_keeps_the_promises() -> None:
    count = explore(generation_rules.judge_claim, generation_rules.judge_write)
    assert count > 10_000, "the world is too small to show anything"


def _grants_equal(claimed: Claimed, wanted: Claimed) -> ClaimVerdict:
    return ClaimVerdict.GRANTED if wanted.generation >= claimed.generation else ClaimVerdict.FENCED


def _ignores_holders(claimed: Claimed, writer: Claimed) -> ClaimVerdict:
    return ClaimVerdict.GRANTED if writer.generation == claimed.generation else ClaimVerdict.FENCED


def _lets_all_write(claimed: Claimed, writer: Claimed) -> ClaimVerdict:
    return ClaimVerdict.GRANTED


@pytest.mark.parametrize(
    ("claim", "write"),
    [
        (_grants_equal, generation_rules.judge_write), (generation_rules.judge_claim, _ignores_holders),
        (generation_rules.judge_claim, _lets_all_write),
    ],
)  # fmt: skip
def test_rules_that_are_weaker_are_caught(claim: Judge, write: Judge) -> None:
    """Else the model would prove nothing."""
    with pytest.raises(AssertionError):
        explore(claim, write)


@pytest.mark.parametrize(
    ("claimed", "wanted", "verdict"),
    [
        ((0, ""), (1, "a"), ClaimVerdict.GRANTED),
        ((1, "a"), (1, "a"), ClaimVerdict.GRANTED),
        ((1, "a"), (1, "b"), ClaimVerdict.FENCED),
        ((1, ""), (1, "a"), ClaimVerdict.FENCED),
        ((2, "b"), (1, "a"), ClaimVerdict.FENCED),
        ((2, "b"), (7, "a"), ClaimVerdict.GRANTED),
    ],
)
def test_claims(claimed: tuple[int, str], wanted: tuple[int, str], verdict: ClaimVerdict) -> None:
    seen = [Claimed(Generation(generation), writer_id) for generation, writer_id in (claimed, wanted)]
    assert generation_rules.judge_claim(*seen) is verdict


@pytest.mark.parametrize(
    ("claimed", "writer", "verdict"),
    [
        ((0, ""), (0, ""), ClaimVerdict.FENCED),
        ((0, ""), (1, "a"), ClaimVerdict.UNCLAIMED),
        ((1, "a"), (1, "a"), ClaimVerdict.GRANTED),
        ((1, "a"), (1, "b"), ClaimVerdict.FENCED),
        ((2, "a"), (1, "a"), ClaimVerdict.FENCED),
        ((1, "a"), (2, "a"), ClaimVerdict.UNCLAIMED),
    ],
)
def test_writes(claimed: tuple[int, str], writer: tuple[int, str], verdict: ClaimVerdict) -> None:
    seen = [Claimed(Generation(generation), writer_id) for generation, writer_id in (claimed, writer)]
    assert generation_rules.judge_write(*seen) is verdict
