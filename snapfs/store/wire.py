"""What a mirror and whoever talks to it say to each other: paths, headers, messages, limits, refusals. No I/O.

Transport is HTTP/1.1, with or without TLS. Messages are JSON (UTF-8, unknown fields are ignored by both ends); objects
travel as the stream of `stream.py`, sets of numbers as runs (below). Both ends send the header `Snapfs-Protocol`; a
mirror refuses a later version ("version"), and every later version understands this one.

What the protocol rests on:
1. AN OBJECT IS (number, proof), wherever its bytes lie. Either side may compact its segments at any time; nobody speaks
   of segments or offsets. Two objects with one number and different proofs are two histories: "diverged", never mixed.
2. A mirror has a set of numbers, without regard to gaps: retention, compaction and skipped snapshots make any set
   possible, so a pusher never infers from "newest number" what the mirror has. It plans what a snapshot needs (against
   a snapshot that the mirror holds whole: pages in common are pruned), the bases of differences included, and the
   object of the record itself (`last_number`), and asks `LACKS` which of these are not there.
3. PARTS are staged objects, verified as they arrive and fsynced before the answer: any objects, ascending by number
   within one part, all of one generation of numbers. Parts come over any number of connections, in any order, twice, or
   overlapping, and are kept over restarts; an object that is there already is passed over. The bases of differences are
   there (committed, staged, or earlier in the same part) or come later: whatever cannot be decoded on arrival is
   verified before the commit. A part cut in the middle keeps what came of it; `LACKS` says how far that is.
4. COMMIT is the one commit point. The mirror walks the tables of the snapshots from their roots and finds every object
   that they need, or refuses with "incomplete" and numbers that are missing. Then it makes the segments of these
   objects durable, then one log record after the other, each snapshot visible whole from that instant; then it answers.
   Snapshots come in ascending order; one that is older than the newest there is history (`history: true`).
   A snapshot N may be committed without N - 1.
5. FENCING: whoever pushes has claimed a generation (CLAIM: durable, then answered) and sends it, and its holder's name,
   with each request that changes something. A mirror refuses any but the newest claimed ("fenced"), at the start and
   again at the instant of effect. The claim of a generation is one holder's: repeated it succeeds, by another it is
   refused. A new writer goes on from the newest snapshot in the answers to its claims (by more than half of the
   targets), not from what it read before: only then it has all that an older one was acknowledged.
   Generation and snapshot numbers only grow; a snapshot that a fenced writer left on a mirror and that the new writer
   never saw is put ASIDE as a branch by the new writer, kept and readable.
6. Everything may be sent again: create, claim, parts, commit, drop, hold, aside give the same answer the second time.
7. The pusher sends only what is durable at its own end: it fdatasyncs its snapshots.log before it reads it. Else a
   power cut could make it give out numbers again that a mirror knows already.
8. OPAQUE volumes (sealing.py) are ciphertext to the mirror: it is sent no seed, and objects that it cannot look into.
   It verifies each against its proof as ever, which is one of the ciphertext, and refuses what is not encrypted. What
   it would find by walking tables its writer says: COMMIT names the numbers that the snapshots need beyond those that
   the mirror had (`needs`), all of which, and their bases, have to be there, and the newest snapshot that the writer
   knows to be there (`ground`), in case this is an older copy of the mirror. It frees only what its writer does not
   name when it names all that lives (COLLECT). An object that is there already is kept, whatever comes in its name:
   sealed twice it may be another ciphertext of the same. KEYS are the wrapped keys of the volume (keys.py).

RUNS (`application/x-snapfs-runs`): 16 bytes each, first and last number of a run (inclusive, u64 little-endian),
ascending, not overlapping. HOT LIST: 16 bytes each, hottest first: inode (u64), first chunk (u32), chunks (u32).

Every request but the two of health carries `Authorization: Bearer <token>`; the rights of a token are per volume.

| operation | method and path (below /v1) | right | request | answer |
| --- | --- | --- | --- | --- |
| VOLUMES   | GET volumes | read | | VolumeList: those that the token may read |
| CREATE    | PUT volumes/V | push | CreateVolume | VolumeState |
| STATE     | GET volumes/V | read | | VolumeState |
| CLAIM     | POST volumes/V/claim | push | Claim | VolumeState |
| SNAPSHOTS | GET volumes/V/snapshots?revision=R&wait=S | read | | SnapshotList; with `revision`: at once if the |
|           | | | | mirror's is another one, else when it becomes another one or S seconds are over |
| LACKS     | POST volumes/V/lacks | push | runs | runs: those of the numbers that are neither committed nor staged |
| PARTS     | POST volumes/V/parts | push, fence | object stream | PartReceipt |
| COMMIT    | POST volumes/V/commit | push, fence | Commit | CommitReceipt |
| DROP      | POST volumes/V/drop | push, fence | Drop | SnapshotList |
| HOLD      | PUT, DELETE volumes/V/holds/NAME | push | Hold | HoldList |
| HOLDS     | GET volumes/V/holds | read | | HoldList |
| ASIDE     | POST volumes/V/aside | push, fence | Aside | SnapshotList |
| COLLECT   | POST volumes/V/collect | push, fence | Collect | Collected: of an opaque volume |
| KEYS      | GET, PUT volumes/V/keys | read; push, fence | keys.json | keys.json: of an opaque volume |
| PROMOTE   | POST volumes/V/promote | admin | Promote | VolumeState |
| OBJECTS   | POST volumes/V/objects | read | ReadObjects | object stream |
| BASES     | POST volumes/V/bases | read | runs | runs: the full objects that those of the numbers that are |
|           | | | | there are differences to |
| OBJECT    | GET volumes/V/objects/NUMBER | read | | object stream of one, with its bases |
| TABLES    | GET volumes/V/snapshots/REF/tables?limit=BYTES | read | | object stream: the pages of the snapshot's |
|           | | | | tables, bases included: root page first, then the way to the root directory, then the rest |
| HOT       | GET, PUT volumes/V/snapshots/REF/hot | read; push, fence | hot list | hot list |
| HEALTH    | GET /healthz, GET /readyz | none | | Health; 503 while not ready |
| METRICS   | GET /metrics | read on * | | Prometheus text |

V is a volume's name there (VOLUME_NAME), NUMBER 16 hex digits. REF is a snapshot's number or name (percent-encoded), or
`aside.BRANCH.NUMBER` for one that was put aside.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Iterator
from enum import IntFlag, StrEnum
from itertools import islice, pairwise
from typing import Annotated, Any, Final, TypeVar

import msgspec
import zstandard
from msgspec import Meta

from snapfs.blocks import ChunkIndex, Generation, Ino, Number, SnapshotNumber
from snapfs.errors import SnapfsError, UserError
from snapfs.store.records import SnapshotRecord, from_fields, to_fields

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
HOLDER_HEADER: Final = "Snapfs-Holder"
WINDOW_HEADER: Final = "Snapfs-Window"
"""In each answer to a pusher: how many parts it may have in flight now (at least 1). More are answered by "busy"."""
PRIORITY_HEADER: Final = "Snapfs-Priority"
"""Of OBJECTS and TABLES: "urgent" (an application waits; the default) or "bulk" (hydration in the background)."""

VOLUME_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""Full match. Also a folder's name on the mirror: no dots, no slashes, nothing that a filesystem could fold."""
HOLDER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
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
"""Of the answer to one OBJECTS or TABLES request; what is over is left out and the end says so."""
MAX_HOT_BYTES: Final = 4 << 20
MAX_SEALED_HOT_BYTES: Final = MAX_HOT_BYTES + 64
MAX_FIRST_NUMBERS: Final = 256
MAX_NEEDS_BYTES: Final = 2 << 20
"""Of `needs` and `live` as text."""
MAX_NEEDS_RUNS: Final = 1 << 18
MAX_WAIT_SECONDS: Final = 60.0
MISSING_TOLD: Final = 256


class Refusal(StrEnum):
    """Why a request failed: `error` of a Problem. Each has one HTTP status."""

    BAD_REQUEST = "bad_request"  # 400: malformed; sending it again will not help
    UNAUTHORIZED = "unauthorized"  # 401: no token, or one that is not known (any more)
    FORBIDDEN = "forbidden"  # 403: the token lacks the right
    NOT_FOUND = "not_found"  # 404: no such volume (or none that the token may know of), snapshot, object
    FENCED = "fenced"  # 409: a newer generation, or another holder of this one, has claimed; `generation`, `holder`
    UNCLAIMED = "unclaimed"  # 409: this generation has not been claimed here: claim it first
    DIVERGED = "diverged"  # 409: another object or snapshot has this number; `snapshot` or `number`
    INCOMPLETE = "incomplete"  # 409: the snapshot needs objects that are not there; `missing` (the first of them)
    EXISTS = "exists"  # 409: a volume of this name and another identity
    TOO_LARGE = "too_large"  # 413: more than a limit allows
    CORRUPT = "corrupt"  # 422: objects that fail their checksum or proof; `number`. Send them again
    VERSION = "version"  # 426: a later protocol or format
    BUSY = "busy"  # 429: more than the window, the rate or the connections allow; wait `retry_after` seconds
    INTERNAL = "internal"  # 500: a bug or a failing disk of the mirror
    UNSUPPORTED = "unsupported"  # 501: known, and not done by this mirror
    STOPPING = "stopping"  # 503: shutting down, or starting
    DISK_FULL = "disk_full"  # 507: no room on the mirror. What it has acknowledged stays; go on when there is room


STATUS: Final = {
    Refusal.BAD_REQUEST: 400, Refusal.UNAUTHORIZED: 401, Refusal.FORBIDDEN: 403, Refusal.NOT_FOUND: 404,
    Refusal.FENCED: 409, Refusal.UNCLAIMED: 409, Refusal.DIVERGED: 409, Refusal.INCOMPLETE: 409, Refusal.EXISTS: 409,
    Refusal.TOO_LARGE: 413, Refusal.CORRUPT: 422, Refusal.VERSION: 426, Refusal.BUSY: 429, Refusal.INTERNAL: 500,
    Refusal.UNSUPPORTED: 501, Refusal.STOPPING: 503, Refusal.DISK_FULL: 507,
}  # fmt: skip

FINAL_REFUSALS: Final = frozenset(
    {Refusal.BAD_REQUEST, Refusal.UNAUTHORIZED, Refusal.FORBIDDEN, Refusal.FENCED, Refusal.EXISTS, Refusal.VERSION}
    | {Refusal.UNSUPPORTED}
)
"""Trying the same again is of no use; all others (and a broken connection) are worth it, after a while."""


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is no success. `message` is one sentence for people."""

    error: str
    message: str
    generation: int = 0
    holder: str = ""
    snapshot: int = 0
    number: int = 0
    missing: list[int] = []
    retry_after: float = 0.0


class RefusedError(SnapfsError):
    """A mirror's refusal, at either end. `problem.error` is a Refusal, or a later version's word."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem

    @property
    def refusal(self) -> Refusal | None:
        """What kind it is; None for one that this version does not know."""
        return next((known for known in Refusal if known == self.problem.error), None)

    @property
    def status(self) -> int:
        return STATUS[self.refusal or Refusal.INTERNAL]


def refuse(refusal: Refusal, message: str, **details: Any) -> RefusedError:
    """The exception for a refusal; `details` are fields of Problem."""
    return RefusedError(Problem(refusal, message, **details))


class Mode(StrEnum):
    """What a mirror can see of a volume."""

    PLAIN = "plain"  # it knows the seed, decodes every object and checks the proof of its content
    OPAQUE = "opaque"  # all is ciphertext to it: it checks proofs of that, and never decodes


MODE_DIFFERS: Final = {
    Mode.OPAQUE: "this volume is kept there as it is, and encrypting does not change what is there: give the target "
    "another name (or folder, or prefix), and remove what is there when the new one has everything",
    Mode.PLAIN: "this volume is kept there encrypted: name its key under [replication.encryption] in volume.toml",
}
"""Why a volume cannot be created in a mode, where it is there in the other one."""


class Right(IntFlag):
    """What a token allows on a volume. ADMIN includes the others, PUSH includes READ."""

    READ = 1
    PUSH = 2
    ADMIN = 4


_Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
_Hex16 = Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
_Generation = Annotated[int, Meta(ge=1, le=0xFFFF)]
_Number = Annotated[int, Meta(ge=1)]  # and below 1 << 64, which msgspec cannot say: `_check_number`
_Holder = Annotated[str, Meta(pattern=f"^{HOLDER_NAME.pattern}$")]
_HoldName = Annotated[str, Meta(pattern=f"^{HOLD_NAME.pattern}$")]


class Limits(msgspec.Struct, frozen=True):
    """What this mirror takes in one request; a pusher keeps to it."""

    part_bytes: int = MAX_PART_BYTES
    part_objects: int = MAX_PART_OBJECTS
    commit_snapshots: int = MAX_COMMIT_SNAPSHOTS
    read_numbers: int = MAX_READ_NUMBERS
    read_bytes: int = MAX_READ_BYTES
    window_parts: int = 4


class CreateVolume(msgspec.Struct, frozen=True):
    """Make the volume, or find it made; nothing of it ever changes. `seed`: 16 hex digits, in OPAQUE mode zeros."""

    volume_id: _Hex32
    seed: _Hex16
    mode: Mode = Mode.PLAIN


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A snapshot as it is on the mirror. `record` has the fields of `records.to_fields`.

    `aside` is the name of the branch it was put aside to, "" for a snapshot of the history. `received_ns` is the
    mirror's clock at its commit.
    """

    record: dict[str, Any]
    state: str = "good"
    received_ns: int = 0
    aside: str = ""

    def decoded(self) -> SnapshotRecord:
        """The record with its state. Raises RefusedError if it is none."""
        return decode_record(self.record).with_state(self.state)


class VolumeState(msgspec.Struct, frozen=True):
    """All that a pusher or a reader has to know first. `newest` is None for a volume without snapshots.

    `newest_number` is the highest object number of any snapshot that was ever here. `seed` is told to readers: they
    check proofs by it; it is zeros in OPAQUE mode. `staged_*` is what parts hold that no snapshot here needs yet.
    """

    name: str
    volume_id: str
    seed: str
    mode: Mode
    generation: int
    holder: str
    revision: int
    newest: Snapshot | None
    newest_number: int
    snapshots: int
    stored_bytes: int
    staged_objects: int
    staged_bytes: int
    free_bytes: int
    limits: Limits
    protocol: int = PROTOCOL_VERSION


class VolumeList(msgspec.Struct, frozen=True):
    volumes: list[VolumeState]


class SnapshotList(msgspec.Struct, frozen=True):
    """Ascending by number. `revision` grows with every commit, drop, change of state, aside and claim, and lasts."""

    revision: int
    generation: int
    holder: str
    snapshots: list[Snapshot]
    aside: list[Snapshot] = []


class Claim(msgspec.Struct, frozen=True):
    """`generation` becomes `holder`'s. 409 "fenced", with the newest generation, if that is not lower, or another's."""

    generation: _Generation
    holder: _Holder
    note: Annotated[str, Meta(max_length=256)] = ""


class PartReceipt(msgspec.Struct, frozen=True):
    """What came of a part. All `objects` are durable and, but for `unverified`, verified; `known` were there before."""

    objects: int
    known: int
    stored_bytes: int
    unverified: int = 0


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Snapshots to make visible, ascending; each with the fields of `records.to_fields`.

    Of an opaque volume, besides: `needs`, the numbers that they need and that were not there before (`pack_needs`;
    empty where they are too many for one message, and the writer has asked LACKS for them); `ground`, a snapshot that
    must be there; `first`, what a mount of the last of them reads first, in that order; `whole`: whether `needs` are
    all that they need, and not only what is new.
    """

    records: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_COMMIT_SNAPSHOTS)]
    history: bool = False
    needs: str = ""
    ground: Annotated[int, Meta(ge=0, le=1 << 48)] = 0
    first: Annotated[list[_Number], Meta(max_length=MAX_FIRST_NUMBERS)] = []
    whole: bool = False

    def __post_init__(self) -> None:
        _check_numbers(*self.first)


class CommitReceipt(msgspec.Struct, frozen=True):
    """`committed`: those that this request added; the others of the request were there."""

    committed: list[int]
    revision: int
    newest: int
    newest_number: int


class Drop(msgspec.Struct, frozen=True):
    """Snapshots that the source has dropped. One that is not there, the newest and held ones are passed over."""

    snapshots: Annotated[list[_Number], Meta(max_length=1 << 16)]


class Aside(msgspec.Struct, frozen=True):
    """Put aside, as the branch `name`, all snapshots above `after` of an older generation than the claimed one."""

    after: Annotated[int, Meta(ge=0, le=1 << 48)]
    name: _HoldName


class Collect(msgspec.Struct, frozen=True):
    """What of an opaque volume lives: told in several messages, of which the first `begins` and the last `ends`.

    With the last one the mirror frees what none of them named. `snapshots` are all that the writer knows to be there;
    if there are others, nothing is freed.
    """

    live: str
    begins: bool = False
    ends: bool = False
    snapshots: Annotated[list[_Number], Meta(max_length=1 << 16)] = []


class Collected(msgspec.Struct, frozen=True):
    freed_bytes: int


class Hold(msgspec.Struct, frozen=True):
    """Keep a snapshot until `seconds` from now have passed (at most a day at a time; again prolongs it)."""

    snapshot: _Number
    seconds: Annotated[float, Meta(gt=0, le=86400)] = 3600.0


class HoldState(msgspec.Struct, frozen=True):
    name: str
    snapshot: int
    seconds_left: float


class HoldList(msgspec.Struct, frozen=True):
    holds: list[HoldState]


class Promote(msgspec.Struct, frozen=True):
    """Fence whoever writes: the next generation is `holder`'s."""

    holder: _Holder = "promoted"


class ReadObjects(msgspec.Struct, frozen=True):
    """The objects `numbers` and those of `runs` ([first, last]) that exist, in ascending order, each once.

    `bases`: a difference is preceded by the full objects it needs. `encodings` is a mask of 1 << Encoding that the
    reader can decode; others are sent as full objects. `have` names bases that need not be sent. A single number that
    is not there is answered by an absent item, one of a run is passed over.
    """

    numbers: Annotated[list[_Number], Meta(max_length=MAX_READ_NUMBERS)] = []
    runs: Annotated[list[tuple[_Number, _Number]], Meta(max_length=MAX_READ_NUMBERS)] = []
    bases: bool = True
    encodings: Annotated[int, Meta(ge=1, le=0xFFFF)] = 0xFFFF
    have: Annotated[list[_Number], Meta(max_length=MAX_READ_NUMBERS)] = []
    limit_bytes: Annotated[int, Meta(ge=1, le=MAX_READ_BYTES)] = MAX_READ_BYTES

    def __post_init__(self) -> None:
        _check_numbers(*self.numbers, *self.have, *(number for run in self.runs for number in run))
        if any(first > last for first, last in self.runs):
            raise ValueError("a run is its first and its last number")


class Health(msgspec.Struct, frozen=True):
    status: str
    version: str
    protocol: int = PROTOCOL_VERSION
    reason: str = ""


_encode: Final = msgspec.json.Encoder().encode
Message = TypeVar("Message")


def encode(message: msgspec.Struct) -> bytes:
    return _encode(message)


def decode(data: bytes, kind: type[Message], limit: int = MAX_JSON_BYTES) -> Message:
    """The message in `data`. Raises RefusedError ("bad_request" or "too_large"), which names the field.

    Of an answer `limit` is MAX_ANSWER_BYTES.
    """
    if len(data) > limit:
        raise refuse(Refusal.TOO_LARGE, f"a message of {len(data)} bytes; at most {limit} are read")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a {kind.__name__}: {error}") from None


def decode_problem(status: int, data: bytes) -> RefusedError:
    """The refusal in an answer that is no success, also when something between us and the mirror wrote it."""
    try:
        return RefusedError(msgspec.json.decode(data, type=Problem))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = next((refusal for refusal, known in STATUS.items() if known == status), Refusal.INTERNAL)
        return refuse(found, f"answer {status} without an explanation: is this a snapfs mirror?")


def encode_record(record: SnapshotRecord) -> dict[str, Any]:
    """The fields of a record for Commit and Snapshot; its state is not part of them."""
    return to_fields(record)


def decode_record(fields: dict[str, Any]) -> SnapshotRecord:
    """The inverse, checked field by field. Raises RefusedError ("bad_request")."""
    try:
        checked = msgspec.convert(fields, _RecordFields)
        record = from_fields(fields)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a snapshot's record: {error}") from None
    if checked.root[0] > checked.last_number:
        raise refuse(Refusal.BAD_REQUEST, f"snapshot {checked.number} has a root above its last number")
    return record


class _RecordFields(msgspec.Struct):
    number: Annotated[int, Meta(ge=1, le=1 << 48)]
    name: Annotated[str, Meta(max_length=255)] | None
    generation: _Generation
    parent: Annotated[int, Meta(ge=0, le=1 << 48)] | None
    cut_time_ns: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    seal_time_ns: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    trigger: Annotated[str, Meta(max_length=64)]
    root: tuple[_Number, _Hex32]
    last_number: _Number
    stats: dict[str, int | float]
    sealed: Annotated[str, Meta(max_length=8192, pattern="^([0-9a-f]{2})*$")] = ""

    def __post_init__(self) -> None:
        _check_numbers(self.root[0], self.last_number)


def _check_numbers(*numbers: int) -> None:
    if any(number >= 1 << 64 for number in numbers):
        raise ValueError("an object's number has 64 bits")


_RUN: Final = struct.Struct("<QQ")
RUN_BYTES: Final = _RUN.size
Run = tuple[int, int]
"""First and last number, inclusive."""


def runs_of(numbers: Iterable[int]) -> Iterator[Run]:
    """Ascending numbers as runs."""
    first = last = -1
    for number in numbers:
        if number == last + 1 and first >= 0:
            last = number
            continue
        if first >= 0:
            yield first, last
        first = last = number
    if first >= 0:
        yield first, last


def in_requests(runs: Iterable[Run], numbers: int = MAX_LACKS_NUMBERS) -> Iterator[list[Run]]:
    """Runs as one LACKS after the other may ask for them: at most so many `numbers`, and MAX_RUNS, in each."""
    batch: list[Run] = []
    room = numbers
    for first, last in runs:
        start = first
        while start <= last:
            stop = min(last, start + room - 1)
            batch.append((start, stop))
            room -= stop - start + 1
            start = stop + 1
            if not room or len(batch) == MAX_RUNS:
                yield batch
                batch, room = [], numbers
    if batch:
        yield batch


def pack_runs(runs: Iterable[Run]) -> bytes:
    return b"".join(_RUN.pack(*run) for run in runs)


def unpack_runs(data: bytes, limit: int = MAX_RUNS) -> list[Run]:
    """Raises RefusedError ("bad_request", "too_large") for anything but ascending runs.

    The answer to LACKS may have more runs than the request had: `limit` is MAX_LACKS_NUMBERS there.
    """
    if len(data) > limit * RUN_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"more than {limit} runs of numbers in one message")
    if len(data) % RUN_BYTES:
        raise refuse(Refusal.BAD_REQUEST, "not a list of runs: its length is wrong")
    runs = [(first, last) for first, last in _RUN.iter_unpack(data)]
    if any(first > last or not first for first, last in runs) or any(b[0] <= a[1] for a, b in pairwise(runs)):
        raise refuse(Refusal.BAD_REQUEST, "not a list of runs: they do not ascend")
    return runs


def pack_needs(runs: Iterable[Run]) -> str:
    """Runs as text for `needs` and `live`: as they are packed, in zstd and base64."""
    return base64.b64encode(zstandard.ZstdCompressor(level=3).compress(pack_runs(runs))).decode()


def fits(numbers: Iterable[int]) -> bool:
    """Whether they can be said in one message."""
    count = sum(1 for _ in islice(runs_of(numbers), MAX_NEEDS_RUNS // 2))
    return count < MAX_NEEDS_RUNS // 2 and len(pack_needs(runs_of(numbers))) <= MAX_NEEDS_BYTES


def unpack_needs(text: str) -> list[Run]:
    """Raises RefusedError ("bad_request", "too_large")."""
    if len(text) > MAX_NEEDS_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"a list of numbers of more than {MAX_NEEDS_BYTES} bytes")
    try:
        data = base64.b64decode(text, validate=True)
        if zstandard.frame_content_size(data) > MAX_NEEDS_RUNS * RUN_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"more than {MAX_NEEDS_RUNS} runs of numbers in one message")
        packed = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_NEEDS_RUNS * RUN_BYTES)
    except (ValueError, zstandard.ZstdError) as error:
        raise refuse(Refusal.BAD_REQUEST, f"not a list of numbers: {error}") from None
    return unpack_runs(packed, MAX_NEEDS_RUNS)


_HOT: Final = struct.Struct("<QII")
Hot = tuple[Ino, ChunkIndex, int]
"""Inode, first chunk, number of chunks."""


def pack_hot(entries: Iterable[Hot]) -> bytes:
    """A hot list, hottest first, cut off at MAX_HOT_BYTES."""
    return b"".join(_HOT.pack(*entry) for entry in entries)[:MAX_HOT_BYTES]


def unpack_hot(data: bytes) -> list[Hot]:
    """Raises RefusedError ("bad_request", "too_large")."""
    if len(data) > MAX_HOT_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"a hot list of {len(data)} bytes; at most {MAX_HOT_BYTES} are kept")
    if len(data) % _HOT.size:
        raise refuse(Refusal.BAD_REQUEST, "not a hot list: its length is wrong")
    return [(Ino(ino), ChunkIndex(first), count) for ino, first, count in _HOT.iter_unpack(data)]


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


def fence_headers(generation: Generation, holder: str) -> dict[str, str]:
    """The headers of requests that change something."""
    return {GENERATION_HEADER: str(generation), HOLDER_HEADER: holder}


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


def aside_name(branch: str, number: SnapshotNumber) -> str:
    """How a snapshot of a branch is called in paths."""
    return f"aside.{branch}.{number}"
