"""A mirror as a source, over HTTP: the reading half of the protocol in store/protocol/wire.py, and the claim.

Requests come from any number of threads and share a pool of kept connections. An answer is parsed as it arrives, so
memory is one object and what the socket holds.

Invariants:
1. Nothing is tried again here, nor elsewhere: the fetcher does that. A silence of `SILENCE_S` is a failure.
2. What comes is checked by the fetcher; a stream that breaks off gives what came before.
3. The token is read anew for each connection pool, and never gets into a message.
"""

from __future__ import annotations

import contextlib
import email.utils
import ssl
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

import urllib3

from snapfs.base.blocks import Generation
from snapfs.base.errors import reason
from snapfs.store.gates.gate_entries import GateEntry, GateList
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol import hot_codec, message_codec, messages, number_runs, object_stream, read_objects, wire
from snapfs.store.protocol.hot_codec import Hot
from snapfs.store.protocol.message_codec import Message
from snapfs.store.protocol.object_stream import Item
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.protocol.target_url import mirror_of
from snapfs.store.protocol.wire import Mode
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.sources import Origin, needs_key

CONNECT_S: Final = 5.0
SILENCE_S: Final = 20.0
CONNECTIONS: Final = 12
_PIECE_BYTES: Final = 256 << 10
_HOLD_MAX_S: Final = 86400.0


class MirrorSource:
    """A volume on a mirror, named by ``https://MIRROR:8700/VOLUME``."""

    is_near = False

    def __init__(self, url: str, access: Access) -> None:
        """Raises UserError for a URL or an access that cannot be. Nothing is connected yet."""
        self.name = url
        self._base, self._volume = mirror_of(url)
        token = wire.authorization(access.token())
        self._headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION), **token}
        tls: dict[str, Any] = {"ssl_context": access.tls()} if self._base.startswith("https:") else {}
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=CONNECTIONS, block=False, retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S), **tls,
        )  # fmt: skip

    # -- what is there

    def health(self) -> tuple[messages.Health, float | None]:
        """Of the mirror, and its time (s since 1970, whole seconds; None: not sent). Needs no token."""
        with self._request("GET", wire.HEALTH_PATH, None, {}, SILENCE_S) as answer, _as_oserror(self.name):
            data, date = answer.read(wire.MAX_JSON_BYTES), answer.headers.get("Date")
        sent_s = email.utils.parsedate_to_datetime(date).timestamp() if date else None
        return message_codec.decode(data, messages.Health), sent_s

    def token_state(self) -> messages.TokenState:
        """What our token may do there. RefusedError: UNAUTHORIZED, or NOT_FOUND of an earlier mirror."""
        return self._json("GET", wire.TOKEN_PATH, messages.TokenState)

    def state(self) -> messages.VolumeState:
        return self._json("GET", wire.volume_path(self._volume), messages.VolumeState)

    def origin(self) -> Origin:
        found = self.encrypted_origin()
        if found.identity.encrypted:
            raise needs_key(self.name)
        return found

    def writer(self) -> tuple[str, Generation, str]:
        """Volume id, the generation that was claimed last (0: none), and the id of its writer."""
        state = self.state()
        return state.volume_id, Generation(state.generation), state.writer_id

    def successions(self) -> list[Succession]:
        """The writers that took over, each with the snapshot it went on from."""
        return self.state().successions

    def gates(self) -> list[GateEntry]:
        try:
            return self._json("GET", wire.volume_path(self._volume, "gates"), GateList).entries
        except RefusedError as error:
            if error.refusal in (Refusal.NOT_FOUND, Refusal.UNSUPPORTED):
                return []  # an earlier mirror
            raise

    def target_peers(self) -> AskedTarget:
        state = self.state()
        return AskedTarget(state.target_id, state.peers)

    def encrypted_origin(self) -> Origin:
        """As `origin`, also of an encrypted store."""
        state = self.state()
        newest = state.newest.decoded() if state.newest is not None else None
        identity = StoreIdentity(state.volume_id, int(state.seed, 16), state.mode is not Mode.PLAIN)
        return Origin(identity, Generation(max(state.generation, 1)), newest)

    def snapshots(self) -> list[SnapshotRecord]:
        return self._listed(self.listing())

    def branches(self) -> list[SnapshotRecord]:
        on_branches = [each.decoded().on_branch(each.branch) for each in self.listing().branches]
        return sorted(on_branches, key=lambda record: (record.branch, record.number))

    def listing(self, revision: int | None = None, wait_s: float = 0.0) -> messages.SnapshotList:
        """The snapshots; with `revision`, when it is another one or after `wait_s`."""
        path = wire.volume_path(self._volume, "snapshots")
        if revision is not None:
            path += f"?revision={revision}&wait={min(wait_s, wire.MAX_WAIT_SECONDS):g}"
        return self._json("GET", path, messages.SnapshotList, silence_s=SILENCE_S + wait_s)

    @staticmethod
    def _listed(listing: messages.SnapshotList) -> list[SnapshotRecord]:
        return sorted((each.decoded() for each in listing.snapshots), key=lambda record: record.number)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return hot_codec.unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The hot list as it was sent, which of an encrypted volume is ciphertext."""
        try:
            return self._body("GET", self._snapshot_path(record, "hot"))
        except RefusedError as error:
            if error.refusal in (Refusal.NOT_FOUND, Refusal.UNSUPPORTED):
                return b""
            raise

    def keys(self) -> bytes:
        return b""

    def wrapped_keys(self) -> bytes:
        """The wrapped keys of an encrypted volume."""
        return self._body("GET", wire.volume_path(self._volume, "keys"))

    # -- objects

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        left: list[int] = sorted({pointer.number for pointer in pointers})
        path = wire.volume_path(self._volume, "objects")
        headers = {wire.PRIORITY_HEADER: "urgent" if urgent else "bulk", "Content-Type": wire.JSON_TYPE}
        while left:
            wanted = read_objects.ReadObjects(numbers=left[: wire.MAX_READ_NUMBERS], bases=bases)
            parser = object_stream.StreamParser()
            came: set[int] = set()
            for item in self._items("POST", path, parser, message_codec.encode(wanted), headers):
                came.add(item.frame.number)
                yield item
            rest = [number for number in left if number not in came]
            if len(rest) == len(left):
                return
            left = rest if parser.cut or len(left) > wire.MAX_READ_NUMBERS else []

    def bases(self, runs: Sequence[number_runs.Run]) -> list[number_runs.Run]:
        path, headers = wire.volume_path(self._volume, "bases"), {"Content-Type": wire.RUNS_TYPE}
        try:
            return number_runs.unpack_runs(
                self._body("POST", path, number_runs.pack_runs(runs), headers), wire.MAX_LACKS_NUMBERS
            )
        except RefusedError as error:
            if error.refusal in (Refusal.NOT_FOUND, Refusal.UNSUPPORTED):
                return []  # a mirror that does not know the question: they are fetched one by one
            raise

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        path = f"{self._snapshot_path(record, 'tables')}?limit={limit_bytes}"
        return self._items("GET", path, object_stream.StreamParser(), None, {})

    # -- what changes something there

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        claim = messages.Claim(generation, writer_id, note, snapshot)
        self._json("POST", wire.volume_path(self._volume, "claim"), messages.VolumeState, message_codec.encode(claim))

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        if record.branch:
            return  # a branch is never dropped, and its number may be that of another snapshot
        path = wire.volume_path(self._volume, "holds", holder)
        if seconds:
            hold = messages.HoldMessage(record.number, min(seconds, _HOLD_MAX_S))
            self._json("PUT", path, messages.HoldList, message_codec.encode(hold))
        else:
            self._body("DELETE", path)

    def hold_records(self) -> list[HoldRecord]:
        return self._json("GET", wire.volume_path(self._volume, "holds"), messages.HoldList).people or []

    def put_hot(self, record: SnapshotRecord, hot: bytes, fence: dict[str, str]) -> None:
        """Send the hot list along with a snapshot that is there."""
        self._body("PUT", self._snapshot_path(record, "hot"), hot, {**fence, "Content-Type": wire.HOT_TYPE})

    def close(self) -> None:
        self._pool.clear()

    # -- one request

    def _snapshot_path(self, record: SnapshotRecord, what: str) -> str:
        ref = wire.branch_ref(record.branch, record.number) if record.branch else str(record.number)
        return wire.volume_path(self._volume, "snapshots", quote(ref), what)

    def _json(
        self, method: str, path: str, kind: type[Message], body: bytes | None = None, *, silence_s: float = SILENCE_S
    ) -> Message:
        headers = {"Content-Type": wire.JSON_TYPE} if body is not None else {}
        return message_codec.decode(
            self._body(method, path, body, headers, silence_s=silence_s), kind, wire.MAX_ANSWER_BYTES
        )

    def _body(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        silence_s: float = SILENCE_S,
    ) -> bytes:
        with self._request(method, path, body, headers or {}, silence_s) as answer, _as_oserror(self.name):
            data: bytes = answer.read(wire.MAX_ANSWER_BYTES + 1)
        if len(data) > wire.MAX_ANSWER_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"{self.name}: an answer that is too long")
        return data

    def _items(
        self, method: str, path: str, parser: object_stream.StreamParser, body: bytes | None, headers: dict[str, str]
    ) -> Iterator[Item]:
        with self._request(method, path, body, headers, SILENCE_S) as answer:
            pieces = answer.stream(_PIECE_BYTES)
            while True:
                with _as_oserror(self.name):
                    piece = next(pieces, None)
                if piece is None:
                    break
                yield from parser.feed(piece)
        if not parser.ended:
            raise OSError(f"{self.name}: the answer broke off")

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], silence_s: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer's head has come; its body is read by the caller. OSError, RefusedError."""
        with _as_oserror(self.name):
            answer = self._pool.request(
                method, self._base + path, body=body, headers={**self._headers, **headers}, preload_content=False,
                redirect=False, timeout=urllib3.Timeout(connect=CONNECT_S, read=silence_s),
            )  # fmt: skip
        whole = False
        try:
            if not 200 <= answer.status < 300:
                with _as_oserror(self.name):
                    data = answer.read(wire.MAX_JSON_BYTES)
                whole = True
                raise message_codec.decode_problem(answer.status, data)
            yield answer
            whole = True
        finally:
            if whole:
                answer.release_conn()
            else:
                answer.close()


@contextlib.contextmanager
def _as_oserror(name: str) -> Iterator[None]:
    try:
        yield
    except (urllib3.exceptions.HTTPError, ssl.SSLError) as error:
        raise OSError(f"{name}: {reason(error)}") from None
