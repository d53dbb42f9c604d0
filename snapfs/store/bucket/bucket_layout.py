"""What a volume is in an object store (S3 and kin): the names of the objects, and the head. No I/O.

Below the prefix of the URL:
    head.json                the only object that is ever replaced, by a put on condition that it is still the one read
    catalog/<SHA-256>.zst    immutable pages (JSON, zstd) of what the head does not name itself
    segments/<name>.seg      immutable segments (format.py), each of one part, or of several merged ones
    hot/<name>               what was used most (wire.py: HOT LIST) when a snapshot came: a hint. The name is generation
                             (4 hex digits) and number (16) of the snapshot, joined by "-"; only the newest is kept
    garbage/<name>           immutable tombstones: what the head did not name at a time, and will not name again
    gates.json               what the snapshots have passed since they were sealed, replaced on condition: GATES
    lock.json                what came less than so long ago is not dropped (locks.py); set by a person, by no push
    probe/<name>             short-lived: how a writer proves that the store refuses what it must (conditional_puts.py)

A segment's name has all that its trailer has: first and last number (16 hex digits each), rows, size in bytes, and
the first 16 hex digits of its table's SHA-256, joined by "-". So a reader that knows the names finds any object with
ranged reads of tables alone. The ranges of two segments may overlap: an object is in any of those whose range has its
number, and if in several it is the same in all. Since format 2 a sixth field follows, the mark: "s" if the segment was
sent, "m" if it was made of others there, and 12 hex digits that are random and the writer's own. So no two writers, and
no two lives of one, ever give the same name, and what was found to be garbage is garbage for ever.

HEAD: {"format": 2, "check": SHA-256 (hex) of the bytes of the value of "body", "body": {"format": 2, "volume", "seed"
(hex), "generation", "holder", "revision", "pages": [keys], "snapshots": [fields of records], "dropped": [numbers],
"segments": [names], "gone": [names], "aside": [{"branch", "record"}], "successions": [{"generation", "holder",
"snapshot"}] (who took over, and what they went on from), "target" (the id it is recognised by), "peers" (to which other
targets the writer replicates: peers.py; absent until the writer sends it)}}; of an encrypted volume also {"opaque":
true, "keys": keys.json as text}, the seed is 0 then. Format 1 was the inner object alone; it is read, and replaced by
format 2 at the next change. The snapshots and segments there are: those of all pages, less `dropped` and `gone`, plus
those of the head. Beside the fields of a record there is "received_ns", when it was committed, by the store's clock.
What is on a branch is no longer in the history; its objects stay.

PAGE: {"snapshots": [fields of records], "segments": [names], "salt"}. In the order of the head's `pages`: those of
snapshots, each of 2^PAGE_BITS numbers, ascending; at the end one with all segments. Who wants the newest snapshots and
any object reads the last few pages, however long the history is. `salt` is the writer's own, as in a segment's name.

TOMBSTONE: {"format": 1, "check", "body": {"at_s", "keys"}}, checked as the head is. A writer that finds it uses none of
the keys any more, though they may be there for a while; an hour after `at_s`, by the clock of the store, its writer or
a later one removes those that the head does not name. The name of a tombstone is random.

GATES: {"format": 1, "check", "body": {"entries": [{"snapshot", "root" (the number of its root object), "gates":
{"verified_ns", "how", "drilled_ns", "passed", "check", "recovery_s", "rto_s"}}], "format"}} (gates/gate_entries.py),
absent until the writer sends it. One that cannot be read says nothing, and is replaced by the next.

Invariants:
1. The put of the head is the commit point: it names only segments and pages that are there, whole. Who replaces it
   does so on condition that it is the one he read; so the claim of a generation in it fences off all others.
2. Everything else is immutable, and no name is given twice. What no head names is removed an hour after a tombstone
   named it, at the earliest, if the head does not name it then either.
3. Each object checks itself: the head by its checksum, a page and a segment's table by the name, a frame by its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

FORMAT: Final = 2

HEAD: Final = "head.json"
SEGMENTS: Final = "segments"
CATALOG: Final = "catalog"
HOT: Final = "hot"
GATES: Final = "gates.json"
GARBAGE: Final = "garbage"
PROBE: Final = "probe"

SCHEMES: Final = ("s3", "gs", "az")


def new_salt() -> str:
    """What makes the names that one writer gives in one life its own."""
    return secrets.token_hex(6)


def new_id() -> str:
    """For a target: 128 random bits, in hex."""
    return secrets.token_hex(16)


def hot_path(generation: int, number: int) -> str:
    return f"{HOT}/{generation:04x}-{number:016x}"


def newest_hot(paths: Iterable[str], generation: int, number: int) -> str | None:
    """The list that came with this snapshot, or else the last one before it. Names sort as what they name."""
    names = {path.rpartition("/")[2]: path for path in paths}
    most = hot_path(generation, number).rpartition("/")[2]
    found = max((name for name in names if name <= most), default=None)
    return names[found] if found is not None else None
