"""The gates of snapshots as they travel: to a target, with the history, and from there to who wants to recover.

An entry names its snapshot by number and by the number of its root object, which no other snapshot ever gets: so what
was found out about one is never taken for another of the same number, which a takeover or a rollback may leave.
Whether replicas exist elsewhere does not travel: a target knows that of itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from snapfs.base.blocks import SnapshotNumber
from snapfs.store.gates.gates import DRILLED, NO_GATES, VERIFIED, Gates

MOST_ENTRIES: Final = 10_000
"""In one message."""
FORMAT: Final = 1
RootOf = Callable[[int], int | None]
"""The number of the root object of a snapshot; None if there is none."""


class GateEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one snapshot has passed. `root`: the number of its root object."""

    snapshot: Annotated[int, Meta(ge=1, le=1 << 48)]
    root: Annotated[int, Meta(ge=1)]
    gates: Gates

    @property
    def key(self) -> tuple[int, int]:
        return self.snapshot, self.root


class GateList(msgspec.Struct, frozen=True):
    """A message of the mirror's protocol, and the body of an object store's gates.json."""

    entries: Annotated[list[GateEntry], Meta(max_length=1 << 20)] = []
    format: int = FORMAT


def entries_of(passed: Iterable[tuple[SnapshotNumber, Gates]], root_of: RootOf) -> Iterator[GateEntry]:
    """An entry for each of the snapshots that there are."""
    for number, gates in passed:
        root = root_of(number)
        if root is not None:
            yield GateEntry(number, root, gates)


def in_messages(entries: Iterable[GateEntry]) -> Iterator[GateList]:
    """Few enough at a time."""
    rest = iter(entries)
    while batch := list(islice(rest, MOST_ENTRIES)):
        yield GateList(batch)


def merged(known: Iterable[GateEntry], new: Iterable[GateEntry], root_of: RootOf) -> list[GateEntry]:
    """What is known after `new`, of the snapshots that there are; ascending. Of each gate the later one counts, from
    whichever writer it comes."""
    found = newest_of([*known, *new])
    return [GateEntry(*key, found[key]) for key in sorted(found) if root_of(key[0]) == key[1]]


def lines_for(entries: Iterable[GateEntry], known: Callable[[int], Gates], root_of: RootOf) -> list[dict[str, Any]]:
    """The lines with which another log takes in what is later than what it knows, each with its `kind`; the last drill
    at the end."""
    verified: dict[tuple[int, str], list[int]] = {}
    lines: list[dict[str, Any]] = []
    for entry in entries:
        gates, here = entry.gates, known(entry.snapshot)
        if root_of(entry.snapshot) != entry.root or gates == here:
            continue
        if gates.verified_ns > here.verified_ns:
            verified.setdefault((gates.verified_ns, gates.how), []).append(entry.snapshot)
        if gates.drilled_ns > here.drilled_ns:
            lines.append({
                "kind": DRILLED, "snapshot": entry.snapshot, "passed": gates.passed, "check": gates.check,
                "recovery_s": gates.recovery_s, "drilled_ns": gates.drilled_ns, "rto_s": gates.rto_s or None,
            })  # fmt: skip
    lines.sort(key=lambda line: int(line["drilled_ns"]))
    for (time_ns, how), numbers in verified.items():
        runs = [[number, number] for number in sorted(numbers)]
        lines.append({"kind": VERIFIED, "snapshots": _joined(runs), "how": how, "verified_ns": time_ns})
    return lines


def newest_of(found: Iterable[GateEntry]) -> dict[tuple[int, int], Gates]:
    """By snapshot and root, over several sources: what was verified anywhere, and the last drill."""
    merged_gates: dict[tuple[int, int], Gates] = {}
    for entry in found:
        one, other = merged_gates.get(entry.key, NO_GATES), entry.gates
        first, last = sorted((one, other), key=lambda gates: gates.drilled_ns)
        verified = max(first, last, key=lambda gates: gates.verified_ns)
        merged_gates[entry.key] = msgspec.structs.replace(last, verified_ns=verified.verified_ns, how=verified.how)
    return merged_gates


def _joined(runs: list[list[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for first, last in runs:
        if found and first == found[-1][1] + 1:
            found[-1][1] = last
        else:
            found.append([first, last])
    return found
