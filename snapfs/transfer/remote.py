"""A mirror as a source, over HTTP: the reading half of the protocol in store/wire.py, and the claim.

Requests come from any number of threads and share a pool of kept connections. An answer is parsed as it arrives, so
memory is one object and what the socket holds.

Invariants:
1. Nothing is tried again here, nor elsewhere: the fetcher does that. A silence of `SILENCE_S` is a failure.
2. What comes is checked by the fetcher; a stream that breaks off gives what came before.
3. The token is read anew for each connection pool, and never gets into a message.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import msgspec
import urllib3

from snapfs.access import MirrorAccess
from snapfs.blocks import Generation
from snapfs.errors import UserError, reason
from snapfs.store import stream, wire
from snapfs.store.format import Pointer
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.stream import Item
from snapfs.store.wire import Hot, Message, Mode, Refusal, RefusedError, refuse
from snapfs.transfer.sources import Origin, needs_key

if TYPE_CHECKING:
    from snapfs.config import EncryptionSettings, TargetSettings
    from snapfs.store.keys import OwnersKey

CONNECT_S: Final = 5.0
SILENCE_S: Final = 20.0
CONNECTIONS: Final = 12
_PIECE_BYTES: Final = 256 << 10
_HOLD_MAX_S: Final = 86400.0


class Access(MirrorAccess, frozen=True, omit_defaults=True):
    """How to get in, wherever a source is.

    `key_file` or `key_command`: the owner's key of a volume that is encrypted there (store/keys.py). `options`: of an
    object store, as obstore calls them; its `token_file` has a key's id and secret.
    """

    key_file: str | None = None
    key_command: str | None = None
    options: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def has_key(self) -> bool:
        return bool(self.key_file or self.key_command)

    @staticmethod
    def of(target: TargetSettings, encryption: EncryptionSettings | None = None) -> Access:
        """To a volume's own target."""
        given = (target.token_file, target.ca, target.certificate, target.key)
        token_file, ca, certificate, key = (value or None for value in given)
        key_file, key_command = (encryption.key_file, encryption.key_command) if encryption is not None else ("", "")
        return Access(token_file, ca, certificate, key, key_file or None, key_command or None, target.options)

    def owners_key(self) -> OwnersKey:
        """UserError if it cannot be read."""
        from snapfs.store.keys import read_owners_key  # most mounts need no cipher, and all are to be quick

        return read_owners_key(self.key_file, self.key_command)


class MirrorSource:
    """A volume on a mirror, named by ``https://MIRROR:8700/VOLUME``."""

    is_near = False

    def __init__(self, url: str, access: Access) -> None:
        """UserError for a URL or an access that cannot be. Nothing is connected yet."""
        self.name = url
        wanted = f"{url}: write https://MIRROR:{wire.DEFAULT_PORT}/VOLUME, with a-z, 0-9, - and _ in VOLUME"
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise UserError(f"{wanted} ({error})") from None
        self._volume = parts.path.strip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or not wire.VOLUME_NAME.fullmatch(self._volume):
            raise UserError(wanted)
        self._base = f"{parts.scheme}://{parts.netloc}"
        token = wire.authorization(access.token())
        self._headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL_VERSION), **token}
        tls: dict[str, Any] = {"ssl_context": access.tls()} if parts.scheme == "https" else {}
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=CONNECTIONS, block=False, retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S), **tls,
        )  # fmt: skip

    # -- what it tells

    def state(self) -> wire.VolumeState:
        return self._json("GET", wire.volume_path(self._volume), wire.VolumeState)

    def origin(self) -> Origin:
        found = self.opaque_origin()
        if found.identity.opaque:
            raise needs_key(self.name)
        return found

    def writer(self) -> tuple[str, Generation, str]:
        """Volume, and the generation that was claimed last (0: none), with its holder."""
        state = self.state()
        return state.volume_id, Generation(state.generation), state.holder

    def opaque_origin(self) -> Origin:
        """The same of a volume that may be encrypted."""
        state = self.state()
        newest = state.newest.decoded() if state.newest is not None else None
        identity = StoreIdentity(state.volume_id, int(state.seed, 16), state.mode is not Mode.PLAIN)
        return Origin(identity, Generation(max(state.generation, 1)), newest)

    def snapshots(self) -> list[SnapshotRecord]:
        return self._listed(self.listing())

    def listing(self, revision: int | None = None, wait_s: float = 0.0) -> wire.SnapshotList:
        """The snapshots; with `revision`, when it is another one or after `wait_s`."""
        path = wire.volume_path(self._volume, "snapshots")
        if revision is not None:
            path += f"?revision={revision}&wait={min(wait_s, wire.MAX_WAIT_SECONDS):g}"
        return self._json("GET", path, wire.SnapshotList, silence_s=SILENCE_S + wait_s)

    @staticmethod
    def _listed(listing: wire.SnapshotList) -> list[SnapshotRecord]:
        return sorted((each.decoded() for each in listing.snapshots), key=lambda record: record.number)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return wire.unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The list as it was sent, which of an encrypted volume is ciphertext."""
        try:
            return self._body("GET", self._snapshot_path(record, "hot"))
        except RefusedError as error:
            if error.refusal in (Refusal.NOT_FOUND, Refusal.UNSUPPORTED):
                return b""
            raise

    def keys(self) -> bytes:
        return b""

    def wrapped_keys(self) -> bytes:
        """Of an encrypted volume."""
        return self._body("GET", wire.volume_path(self._volume, "keys"))

    # -- objects

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        left: list[int] = sorted({pointer.number for pointer in pointers})
        path = wire.volume_path(self._volume, "objects")
        headers = {wire.PRIORITY_HEADER: "urgent" if urgent else "bulk", "Content-Type": wire.JSON_TYPE}
        while left:
            wanted = wire.ReadObjects(numbers=left[: wire.MAX_READ_NUMBERS], bases=bases)
            parser = stream.StreamParser()
            came: set[int] = set()
            for item in self._items("POST", path, parser, wire.encode(wanted), headers):
                came.add(item.frame.number)
                yield item
            rest = [number for number in left if number not in came]
            if len(rest) == len(left):
                return
            left = rest if parser.cut or len(left) > wire.MAX_READ_NUMBERS else []

    def bases(self, runs: Sequence[wire.Run]) -> list[wire.Run]:
        path, headers = wire.volume_path(self._volume, "bases"), {"Content-Type": wire.RUNS_TYPE}
        try:
            return wire.unpack_runs(self._body("POST", path, wire.pack_runs(runs), headers), wire.MAX_LACKS_NUMBERS)
        except RefusedError as error:
            if error.refusal in (Refusal.NOT_FOUND, Refusal.UNSUPPORTED):
                return []  # a mirror that does not know the question: they are fetched one by one
            raise

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        path = f"{self._snapshot_path(record, 'tables')}?limit={limit_bytes}"
        return self._items("GET", path, stream.StreamParser(), None, {})

    # -- what changes something there

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        claim = wire.Claim(generation, holder, note)
        self._json("POST", wire.volume_path(self._volume, "claim"), wire.VolumeState, wire.encode(claim))

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        path = wire.volume_path(self._volume, "holds", holder)
        if seconds:
            hold = wire.Hold(record.number, min(seconds, _HOLD_MAX_S))
            self._json("PUT", path, wire.HoldList, wire.encode(hold))
        else:
            self._body("DELETE", path)

    def put_hot(self, record: SnapshotRecord, hot: bytes, fence: dict[str, str]) -> None:
        """Send the hot list along with a snapshot that is there."""
        self._body("PUT", self._snapshot_path(record, "hot"), hot, {**fence, "Content-Type": wire.HOT_TYPE})

    def close(self) -> None:
        self._pool.clear()

    # -- one request

    def _snapshot_path(self, record: SnapshotRecord, what: str) -> str:
        return wire.volume_path(self._volume, "snapshots", quote(str(record.number)), what)

    def _json(
        self, method: str, path: str, kind: type[Message], body: bytes | None = None, *, silence_s: float = SILENCE_S
    ) -> Message:
        headers = {"Content-Type": wire.JSON_TYPE} if body is not None else {}
        return wire.decode(self._body(method, path, body, headers, silence_s=silence_s), kind, wire.MAX_ANSWER_BYTES)

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
        self, method: str, path: str, parser: stream.StreamParser, body: bytes | None, headers: dict[str, str]
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
                raise wire.decode_problem(answer.status, data)
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
