"""The protocol between a mirror and its clients: paths, headers, messages, limits, refusals. No I/O.

Transport is HTTP/1.1, with or without TLS. Messages are JSON (UTF-8, unknown fields are ignored by both ends); objects
travel as the stream of `object_stream.py`, sets of numbers as runs (below). Both ends send the header
`Snapfs-Protocol`; a mirror refuses a later version ("version"), and every later version understands this one.

What the protocol rests on:
1. AN OBJECT IS (number, content hash), wherever its bytes lie. Either side may compact its segments at any time; no
   message has segments or offsets. Two objects with one number and different content hashes are two histories:
   "diverged", never mixed.
2. A mirror has a set of numbers, without regard to gaps: retention, compaction and skipped snapshots make any set
   possible, so a pusher never infers from "newest number" what the mirror has. It plans what a snapshot needs (against
   a snapshot that the mirror holds whole: pages in common are pruned), the bases of differences included, and the
   object of the record itself (`last_number`), and requests with `LACKS` which of these are not there.
3. PARTS are staged objects, verified as they arrive and fsynced before the answer: any objects, ascending by number
   within one part, all of one generation of numbers. Parts come over any number of connections, in any order, twice, or
   overlapping, and are kept over restarts; an object that is there already is passed over. The bases of differences are
   there (committed, staged, or earlier in the same part) or come later: whatever cannot be decoded on arrival is
   verified before the commit. A part cut in the middle keeps what came of it; `LACKS` reports how far that is.
4. COMMIT is the one commit point. The mirror walks the tables of the snapshots from their roots and finds every object
   that they need, or refuses with "incomplete" and numbers that are missing. Then it makes the segments of these
   objects durable, then one log record after the other, each snapshot visible whole from that instant; then it answers.
   Snapshots come in ascending order; one that is older than the newest there is history (`history: true`).
   A snapshot N may be committed without N - 1.
5. FENCING: a pusher has claimed a generation (CLAIM: durable, then answered) and sends it, and its writer's name,
   with each request that changes something. A mirror refuses any but the newest claimed ("fenced"), at the start and
   again at the instant of effect. The claim of a generation is one writer's: repeated it succeeds, by another it is
   refused. A new writer goes on from the newest snapshot in the answers to its claims (by more than half of the
   targets), not from what it read before: only then it has all that an older one was acknowledged.
   Generation and snapshot numbers only grow; a snapshot that a fenced writer left on a mirror and that the new writer
   never saw is moved to a branch (ASIDE) by the new writer, kept and readable.
6. Everything may be sent again: create, claim, parts, commit, drop, hold, aside give the same answer the second time.
7. The pusher sends only what is durable at its own end: it fdatasyncs its snapshots.log before it reads it. Else a
   power cut could make it give out numbers again that a mirror knows already.
8. ENCRYPTED volumes (encryption.py) are ciphertext to the mirror: it is sent no seed, and objects that it cannot look
   into. It verifies each against its content hash as ever, which is one of the ciphertext, and refuses what is not
   encrypted. What it would find by walking tables its writer sends: COMMIT names the numbers that the snapshots need
   beyond those that the mirror had (`needs`), all of which, and their bases, have to be there, and the newest snapshot
   that the writer knows to be there (`ground`), in case this is an older copy of the mirror. It frees only what its
   writer does not name when it names all that lives (COLLECT). An object that is there already is kept, whatever comes
   in its name: encrypted twice it may be another ciphertext of the same. KEYS are the wrapped keys of the volume
   (keys.py).
9. DROP and COLLECT are all that takes something away, and take a right of their own, `prune`. A writer without it is
   answered so for each snapshot, in a successful answer, since earlier writers would stop at a refusal. What a lock
   keeps (locks.py) is not dropped, whatever the token.

RUNS (`application/x-snapfs-runs`): 16 bytes each, first and last number of a run (inclusive, u64 little-endian),
ascending, not overlapping. HOT LIST: 16 bytes each, hottest first: inode (u64), first chunk (u32), chunks (u32).

Every request but the two of health carries `Authorization: Bearer <token>`; the rights of a token are per volume.

| operation | method and path (below /v1) | right | request | answer |
| --- | --- | --- | --- | --- |
| VOLUMES   | GET volumes | read | | VolumeList: those that the token may read |
| TOKEN     | GET token | none | | TokenState: what the token that is shown may do |
| CREATE    | PUT volumes/V | push | CreateVolume | VolumeState |
| STATE     | GET volumes/V | read | | VolumeState |
| CLAIM     | POST volumes/V/claim | push | Claim | VolumeState |
| SNAPSHOTS | GET volumes/V/snapshots?revision=R&wait=S | read | | SnapshotList; with `revision`: at once if the |
|           | | | | mirror's is another one, else when it becomes another one or S seconds are over |
| LACKS     | POST volumes/V/lacks | push | runs | runs: those of the numbers that are neither committed nor staged |
| PARTS     | POST volumes/V/parts | push, fence | object stream | PartReceipt |
| COMMIT    | POST volumes/V/commit | push, fence | Commit | CommitReceipt |
| DROP      | POST volumes/V/drop | prune | Drop | DropAnswer: with the fence of a writer, or a person's |
| HOLD      | PUT, DELETE volumes/V/holds/NAME | push | Hold | HoldList |
| HOLDS     | GET volumes/V/holds | read | | HoldList |
| HELD      | PUT volumes/V/held | push, fence | PutHolds | HoldList: what people hold travels with the history |
| ASIDE     | POST volumes/V/aside | push, fence | Aside | SnapshotList |
| COLLECT   | POST volumes/V/collect | prune, fence | Collect | Collected: of an encrypted volume |
| KEYS      | GET, PUT volumes/V/keys | read; push, fence | keys.json | keys.json: of an encrypted volume |
| PROMOTE   | POST volumes/V/promote | admin | Promote | VolumeState |
| OBJECTS   | POST volumes/V/objects | read | ReadObjects | object stream |
| BASES     | POST volumes/V/bases | read | runs | runs: the full objects that those of the numbers that are |
|           | | | | there are differences to |
| OBJECT    | GET volumes/V/objects/NUMBER | read | | object stream of one, with its bases |
| TABLES    | GET volumes/V/snapshots/REF/tables?limit=BYTES | read | | object stream: the pages of the snapshot's |
|           | | | | tables, bases included: root page first, then the way to the root directory, then the rest |
| HOT       | GET, PUT volumes/V/snapshots/REF/hot | read; push, fence | hot list | hot list |
| GATES     | GET, PUT volumes/V/gates | read; push, fence | GateList | GateList: what snapshots have passed |
|           | | | | (gates/gate_entries.py); PUT adds to what is known, in messages of at most 10,000 entries |
| HEALTH    | GET /healthz, GET /readyz | none | | Health; 503 while not ready |
| METRICS   | GET /metrics | read on * | | Prometheus text |

V is a volume's name there (VOLUME_NAME), NUMBER 16 hex digits. REF is a snapshot's number or name (percent-encoded), or
`aside.BRANCH.NUMBER` for one on a branch.
"""

from __future__ import annotations

import re
from enum import IntFlag, StrEnum
from typing import Final

from snapfs.base.blocks import Generation, Number, SnapshotNumber
from snapfs.base.errors import UserError
from snapfs.store.protocol.refusals import Refusal, refuse

PROTOCOL_VERSION: Final = 1
DEFAULT_PORT: Final = 8700
PREFIX: Final = "/v1"
HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"
METRICS_PATH: Final = "/metrics"

JSON_TYPE: Final = "application/json"
OBJECTS_TYPE: Final = "application/x-snapfs-objects"
RUNS_TYPE: Final = "application/x-snapfs-runs"
HOT_TYPE: Final = "application/x-snapfs-hot"

PROTOCOL_HEADER: Final = "Snapfs-Protocol"
GENERATION_HEADER: Final = "Snapfs-Generation"
WRITER_HEADER: Final = "Snapfs-Holder"
WINDOW_HEADER: Final = "Snapfs-Window"
"""In each answer to a pusher: how many parts it may have in flight now (at least 1). More are answered by "busy"."""
PRIORITY_HEADER: Final = "Snapfs-Priority"
"""Of OBJECTS and TABLES: "urgent" (an application waits; the default) or "bulk" (hydration in the background)."""

VOLUME_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Full match. Also a folder's name on the mirror: no dots, no slashes, nothing that a filesystem could fold."""
WRITER_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
"""Full match. Who writes: a name that is another one for each writer (host and volume folder, or random)."""
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")
HOLD_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

MAX_PART_BYTES: Final = 64 << 20
"""Of a part's stream; the mirror may offer less in Limits."""
MAX_PART_OBJECTS: Final = 1 << 16
MAX_JSON_BYTES: Final = 4 << 20
"""Of a request."""
MAX_ANSWER_BYTES: Final = 256 << 20
"""Of an answer in JSON: a snapshot is about 500 bytes of a SnapshotList, and a mirror may keep any number of them."""
MAX_RUNS: Final = 1 << 16
MAX_LACKS_NUMBERS: Final = 1 << 20
"""Numbers in the runs of one LACKS."""
MAX_COMMIT_SNAPSHOTS: Final = 1000
MAX_READ_NUMBERS: Final = 4096
MAX_READ_BYTES: Final = 32 << 20
"""Of the answer to one OBJECTS or TABLES request; what is over is left out and the end reports it."""
MAX_HOT_BYTES: Final = 4 << 20
MAX_ENCRYPTED_HOT_BYTES: Final = MAX_HOT_BYTES + 64
MAX_FIRST_NUMBERS: Final = 256
MAX_NEEDS_BYTES: Final = 2 << 20
"""Of `needs` and `live` as text."""
MAX_NEEDS_RUNS: Final = 1 << 18
MAX_WAIT_SECONDS: Final = 60.0
MISSING_LISTED: Final = 256


class Mode(StrEnum):
    """What a mirror can see of a volume."""

    PLAIN = "plain"  # it knows the seed, decodes every object and checks the content hash of its content
    ENCRYPTED = "opaque"  # all is ciphertext to it: it checks content hashes of that, and never decodes


MODE_DIFFERS: Final = {
    Mode.ENCRYPTED: "this volume is kept there as it is, and encrypting does not change what is there: give the target "
    "another name (or folder, or prefix), and remove what is there when the new one has everything",
    Mode.PLAIN: "this volume is kept there encrypted: name its key under [replication.encryption] in volume.toml",
}
"""Why a volume cannot be created in a mode, where it is there in the other one."""


class Right(IntFlag):
    """What a token allows on a volume. ADMIN includes the others; PUSH and PRUNE, which drops, include READ."""

    READ = 1
    PUSH = 2
    ADMIN = 4
    PRUNE = 8


TOKEN_PATH: Final = f"{PREFIX}/token"


def volumes_path() -> str:
    return f"{PREFIX}/volumes"


def volume_path(name: str, *rest: str) -> str:
    """The path of a volume or of something of it: `volume_path("pg", "claim")`. Raises RefusedError for a bad name."""
    return "/".join((volumes_path(), check_volume_name(name), *rest))


def check_volume_name(name: str) -> str:
    """`name`, or RefusedError ("bad_request")."""
    if not VOLUME_NAME.fullmatch(name):
        raise refuse(Refusal.BAD_REQUEST, "a volume's name is 1 to 63 of a-z, 0-9, - and _, first a letter or digit")
    return name


def fence_headers(generation: Generation, writer_id: str) -> dict[str, str]:
    """The headers of requests that change something."""
    return {GENERATION_HEADER: str(generation), WRITER_HEADER: writer_id}


def authorization(token: str) -> dict[str, str]:
    """The header with a token, none for "". Raises UserError for what is none; it never gets into a message."""
    if token and not _TOKEN.fullmatch(token):
        raise UserError("the file with the token must hold one word, as `snapfs-replicator token create` prints it")
    return {"Authorization": f"Bearer {token}"} if token else {}


def number_text(number: Number) -> str:
    return f"{number:016x}"


def parse_number(text: str) -> Number:
    """The inverse of `number_text`. Raises RefusedError ("bad_request")."""
    if not re.fullmatch("[0-9a-f]{16}", text):
        raise refuse(Refusal.BAD_REQUEST, "an object's number is 16 hex digits")
    return Number(int(text, 16))


def branch_ref(branch: str, number: SnapshotNumber) -> str:
    """How a snapshot of a branch is called in paths."""
    return f"aside.{branch}.{number}"
