"""Fencing, checked in full: every state of a small world is walked through.

The world: three mirrors, two writers that each ask for generations and then write, a network that delivers any message
ever sent, at any time, as often as it likes, and loses any answer. Mirrors are killed at will; what they had durably
stays, so that a kill is a lost answer. The writers act as the protocol says: ask mirrors for their generation (each
answer may be old), claim the highest + 1, write when more than half have granted the claim.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pytest

from replicator import fencing
from replicator.fencing import Claimed, Verdict
from snapfs.blocks import Generation

MIRRORS = 3
MAJORITY = 2
WRITERS = ("a", "b")
HIGHEST = 2
"""Generation up to which writers ask."""


class Mirror(NamedTuple):
    claimed: Claimed = Claimed()
    effects: tuple[Claimed, ...] = ()
    """Whose writes took effect, in order; a repeated write changes nothing and is not told twice."""


class Writer(NamedTuple):
    generation: int = 0  # the one it asks for or has
    granted: frozenset[int] = frozenset()  # mirrors that said yes
    told: frozenset[Claimed] = frozenset()  # whose writes they had then, as these answers said


class World(NamedTuple):
    mirrors: tuple[Mirror, ...] = (Mirror(),) * MIRRORS
    writers: tuple[Writer, ...] = (Writer(),) * len(WRITERS)
    claims: frozenset[Claimed] = frozenset()  # sent: each may arrive at any mirror, at any time, any number of times
    writes: frozenset[Claimed] = frozenset()


Item = TypeVar("Item")
Judge = Callable[[Claimed, Claimed], Verdict]


def steps(world: World, judge_claim: Judge, judge_write: Judge) -> Iterator[World]:
    for at, writer in enumerate(world.writers):
        yield from _ask(world, at, writer)
        if len(writer.granted) >= MAJORITY:
            yield world._replace(writes=world.writes | {_name(at, writer.generation)})
    for place, mirror in enumerate(world.mirrors):
        for claim in world.claims:
            yield from _claim_arrives(world, place, mirror, claim, judge_claim)
        for write in world.writes:
            yield from _write_arrives(world, place, mirror, write, judge_write)


def _name(writer: int, generation: int) -> Claimed:
    return Claimed(Generation(generation), WRITERS[writer])


def _ask(world: World, at: int, writer: Writer) -> Iterator[World]:
    """Begin anew, with any generation that some mirror's answer, maybe an old one, led to."""
    seen = max(mirror.claimed.generation for mirror in world.mirrors)
    for generation in range(writer.generation + 1, min(seen + 1, HIGHEST) + 1):
        changed = _with(world.writers, at, Writer(generation))
        yield world._replace(writers=changed, claims=world.claims | {_name(at, generation)})


def _claim_arrives(world: World, place: int, mirror: Mirror, claim: Claimed, judge: Judge) -> Iterator[World]:
    verdict = judge(mirror.claimed, claim)
    if verdict is Verdict.GRANTED:
        world = world._replace(mirrors=_with(world.mirrors, place, mirror._replace(claimed=claim)))
    yield world  # the answer is lost
    at = WRITERS.index(claim.holder)
    writer = world.writers[at]
    if writer.generation != claim.generation:
        return
    if verdict is Verdict.GRANTED:  # a refusal changes nothing: it may ask again, or not
        granted, told = writer.granted | {place}, writer.told | set(mirror.effects)
        yield world._replace(writers=_with(world.writers, at, writer._replace(granted=granted, told=told)))


def _write_arrives(world: World, place: int, mirror: Mirror, write: Claimed, judge: Judge) -> Iterator[World]:
    if judge(mirror.claimed, write) is not Verdict.GRANTED:
        return
    if write not in mirror.effects:
        mirror = mirror._replace(effects=(*mirror.effects, write))
        world = world._replace(mirrors=_with(world.mirrors, place, mirror))
    elif mirror.effects[-1] != write:  # an effect after another writer's: the order tells
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
    majorities = [
        (writer.generation, at) for at, writer in enumerate(world.writers) if len(writer.granted) >= MAJORITY
    ]
    held = Counter(generation for generation, _ in majorities)
    assert all(count == 1 for count in held.values()), "one generation, two writers with more than half"
    effective = Counter(effect for mirror in world.mirrors for effect in set(mirror.effects))
    durable = {effect for effect, count in effective.items() if count >= MAJORITY}
    assert len(durable) == len({effect.generation for effect in durable}), "both wrote one generation on more than half"
    for generation, at in majorities:
        older = {effect for effect in durable if effect.generation < generation}
        assert older <= world.writers[at].told, "a new writer does not know what was acknowledged by more than half"


def check_step(before: World, after: World) -> None:
    for old, new in zip(before.mirrors, after.mirrors, strict=True):
        assert new.claimed.generation >= old.claimed.generation, "a generation fell"
        if new.effects != old.effects:
            assert new.effects[-1] == old.claimed, "somebody else's write took effect"


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
    count = explore(fencing.judge_claim, fencing.judge_write)
    assert count > 10_000, "the world is too small to say anything"


def _grants_equal(claimed: Claimed, wanted: Claimed) -> Verdict:
    return Verdict.GRANTED if wanted.generation >= claimed.generation else Verdict.FENCED


def _ignores_holders(claimed: Claimed, writer: Claimed) -> Verdict:
    return Verdict.GRANTED if writer.generation == claimed.generation else Verdict.FENCED


def _lets_all_write(claimed: Claimed, writer: Claimed) -> Verdict:
    return Verdict.GRANTED


@pytest.mark.parametrize(
    ("claim", "write"),
    [
        (_grants_equal, fencing.judge_write), (fencing.judge_claim, _ignores_holders),
        (fencing.judge_claim, _lets_all_write),
    ],
)  # fmt: skip
def test_rules_that_are_weaker_are_caught(claim: Judge, write: Judge) -> None:
    """Else the model would prove nothing."""
    with pytest.raises(AssertionError):
        explore(claim, write)


@pytest.mark.parametrize(
    ("claimed", "wanted", "verdict"),
    [
        ((0, ""), (1, "a"), Verdict.GRANTED),
        ((1, "a"), (1, "a"), Verdict.GRANTED),
        ((1, "a"), (1, "b"), Verdict.FENCED),
        ((1, ""), (1, "a"), Verdict.FENCED),
        ((2, "b"), (1, "a"), Verdict.FENCED),
        ((2, "b"), (7, "a"), Verdict.GRANTED),
    ],
)
def test_claims(claimed: tuple[int, str], wanted: tuple[int, str], verdict: Verdict) -> None:
    told = [Claimed(Generation(generation), holder) for generation, holder in (claimed, wanted)]
    assert fencing.judge_claim(*told) is verdict


@pytest.mark.parametrize(
    ("claimed", "writer", "verdict"),
    [
        ((0, ""), (0, ""), Verdict.FENCED),
        ((0, ""), (1, "a"), Verdict.UNCLAIMED),
        ((1, "a"), (1, "a"), Verdict.GRANTED),
        ((1, "a"), (1, "b"), Verdict.FENCED),
        ((2, "a"), (1, "a"), Verdict.FENCED),
        ((1, "a"), (2, "a"), Verdict.UNCLAIMED),
    ],
)
def test_writes(claimed: tuple[int, str], writer: tuple[int, str], verdict: Verdict) -> None:
    told = [Claimed(Generation(generation), holder) for generation, holder in (claimed, writer)]
    assert fencing.judge_write(*told) is verdict
