"""Where a lazily mounted volume gets its past from: another volume's folder, a mirror's, or a mirror (remote.py).

A `Source` delivers objects by number, framed as they lie in a segment, each with its proof: whoever receives them
checks them (fetcher.py). What a source does not have it leaves out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from snapfs.blocks import Disk, Generation, Ino, Number
from snapfs.errors import CorruptionError, SnapfsError, UserError
from snapfs.store import codec, wire
from snapfs.store.format import NULL, Encoding, Pointer, unpack_frame
from snapfs.store.holds import Holds
from snapfs.store.log import SnapshotLog
from snapfs.store.reach import bases_of_all
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.repository import LOG, Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.stream import Item
from snapfs.store.wire import Hot, Refusal, Run, refuse, runs_of, unpack_hot
from snapfs.volume import Volume

KEYS_FILE = "keys.json"
"""In a volume's folder, where it is encrypted for its targets: its wrapped keys (store/keys.py)."""
HOT_FILE = "hot"
"""In a volume's folder: the newest hot list (wire.py has its layout). In one that snapshots are pushed to, they lie in
store/hot/, by snapshot."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose past it is: identity, the newest generation that has been claimed there, and the newest snapshot there."""

    identity: StoreIdentity
    generation: Generation
    newest: SnapshotRecord | None = None


class Source(Protocol):
    """All methods from any thread. OSError or SnapfsError where it fails as a whole."""

    name: str
    is_near: bool
    """On this host: asked first, and not worth waiting for."""

    def origin(self) -> Origin:
        """Whose store it is."""

    def snapshots(self) -> list[SnapshotRecord]:
        """Ascending by number."""

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        """Those of the objects that it has; with `bases` each after the full objects it is a difference to.

        A pointer without a proof (b"") means the object of that number, whatever it is.
        """

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        """The full objects that those of the objects that it has are differences to; as far as that is easily told."""

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """The beginning of a snapshot's tables, in one round trip: root page, the way to the root directory, more."""

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        """What the last life used most, hottest first; empty where that is not known."""

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        """Become the one writer. RefusedError where a newer generation has been claimed."""

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        """Let the snapshot stay there for so long; 0 ends it."""

    def keys(self) -> bytes:
        """The wrapped keys of an encrypted volume (store/keys.py), b"" of any other."""

    def close(self) -> None: ...


class FolderSource:
    """The store of a volume or a mirror on this host, opened for reading."""

    is_near = True

    def __init__(self, path: str) -> None:
        """UserError if there is none."""
        self.name = path
        self._volume = Volume.open(path, Disk())
        if not os.path.exists(os.path.join(self._volume.store_dir, LOG)):
            raise UserError(f"{path} has no snapshot to begin with")
        identity = StoreIdentity(self._volume.volume_id, self._volume.seed, self._volume.opaque)
        store_dir = self._volume.store_dir
        self._repository = Repository.open(store_dir, identity, Disk(), readonly=True, cache_bytes=16 << 20)
        self._refreshing = threading.Lock()

    @property
    def is_opaque(self) -> bool:
        return self._volume.opaque

    def keys(self) -> bytes:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self._volume.path, KEYS_FILE), "rb") as file:
            return file.read(wire.MAX_JSON_BYTES)
        return b""

    def wrapped_keys(self) -> bytes:
        """Of an encrypted volume."""
        return self.keys()

    def origin(self) -> Origin:
        if self.is_opaque:
            raise needs_key(self.name)
        return self.opaque_origin()

    def opaque_origin(self) -> Origin:
        """The same of a volume that may be encrypted."""
        found = self.snapshots()
        newest = max((record.generation for record in found), default=Generation(1))
        generation = max(self._volume.generation, newest, self._claimed()[0])
        return Origin(self._repository.identity, generation, found[-1] if found else None)

    def snapshots(self) -> list[SnapshotRecord]:
        with self._refreshing:
            self._repository.refresh()
        return self._repository.snapshots()

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        sent: set[Number] = set()
        for pointer in pointers:
            try:
                numbers = self._with_bases(pointer.number) if bases else [pointer.number]
                items = [self._item(number) for number in numbers if number not in sent]
            except (CorruptionError, FileNotFoundError):
                continue
            if items and pointer.proof in (b"", items[-1].proof):
                sent.update(item.frame.number for item in items)
                yield from items

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        numbers = (number for first, last in runs for number in range(first, last + 1))
        return list(runs_of(bases_of_all(self._repository.index, self._repository.objects, numbers)))

    def _with_bases(self, number: Number) -> list[Number]:
        return [*sorted(self._repository.objects.bases_of(number)), number]

    def _item(self, number: Number) -> Item:
        source, row = self._repository.objects.index.locate(number)
        framed = source.frame(row)
        return Item(row.proof, unpack_frame(framed), framed)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """No round trip is saved here: just the root, and what is on the way to the root directory."""
        noting = _Noting(self._repository)
        tree = SnapshotTree(noting, record.root)
        root = tree.inode(Ino(1))
        if root is not None:
            next(tree.entries(root), None)
        return self.objects(noting.pointers)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return unpack_hot(self.hot_bytes(record))

    def hot_bytes(self, record: SnapshotRecord) -> bytes:
        """The list as it was sent, which of an encrypted volume is ciphertext."""
        folder = os.path.join(self._volume.store_dir, HOT_FILE)
        pushed = [int(name) for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if name.isdecimal()]
        newest = max((number for number in pushed if number <= record.number), default=None)
        place = os.path.join(self._volume.path, HOT_FILE) if newest is None else os.path.join(folder, str(newest))
        try:
            with open(place, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        """A volume's own folder knows no claims. In the log of one that snapshots are pushed to, it is a line."""
        if not self._claimed()[0]:
            return
        self._volume.lock("claimed for another host")
        log = SnapshotLog(os.path.join(self._volume.store_dir, LOG), Disk(), readonly=False)
        try:
            known, who = Generation(0), ""
            for event in log.follow():
                if event.kind == "claimed":
                    known, who = Generation(event.fields["generation"]), event.fields["holder"]
            if known > generation or (known == generation and who != holder):
                why = f"generation {known} of {self.name} is {who}'s"
                raise refuse(Refusal.FENCED, why, generation=known, holder=who)
            if known < generation:
                log.cut_torn_tail()
                log.append("claimed", {"generation": generation, "holder": holder, "note": note})
        finally:
            log.close()
            self._volume.unlock()

    def _claimed(self) -> tuple[Generation, str]:
        """The newest claim, generation 0 where there never was one."""
        found = (Generation(0), "")
        for event in self._repository.events():
            if event.kind == "claimed":
                found = Generation(event.fields["generation"]), event.fields["holder"]
        return found

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        holds = Holds(self._volume.store_dir, Disk())
        if seconds:
            holds.take(holder, [record.number], seconds, "a volume that was mounted from here is not all there yet")
        else:
            holds.release(holder)

    def close(self) -> None:
        self._repository.close()


class _Noting:
    """Reads objects and remembers which."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.pointers: list[Pointer] = []

    def read(self, pointer: Pointer) -> bytes:
        if pointer != NULL:
            self.pointers.append(pointer)
        return self._repository.read(pointer)


def bases_in_order(item: Item) -> tuple[Number, Number, Number]:
    """Base, before and after, as `codec.Bases` has them; 0 where there is none. Raises codec.DecodeError."""
    frame = item.frame
    if frame.encoding != Encoding.SHIFT:
        return frame.base, Number(0), Number(0)
    before, after = codec.shift_neighbours(item.payload)
    return frame.base, Number(before), Number(after)


def holder_name(volume_path: str) -> str:
    """Who writes here, as mirrors are told; the same as the replicator calls itself when it pushes this volume."""
    machine = ""
    with contextlib.suppress(OSError), open("/etc/machine-id", encoding="ascii") as file:
        machine = file.read().strip()
    host = socket.gethostname().partition(".")[0] or "host"
    tell = hashlib.sha256(f"{machine} {host} {os.path.realpath(volume_path)}".encode()).hexdigest()[:8]
    return f"{''.join(letter for letter in host if letter.isalnum() and letter.isascii())[:40] or 'host'}-{tell}"


def needs_key(name: str) -> UserError:
    """Why an encrypted volume cannot be read."""
    return UserError(f"{name} is encrypted: give its key, with --key-file or --key-command")


def no_answer(failures: Sequence[tuple[Source, Exception]], advice: str = "") -> SnapfsError:
    """What to tell when each of the sources failed, with the exit code that all of them have."""
    why = [str(each) if str(each).startswith(source.name) else f"{source.name}: {each}" for source, each in failures]
    found = UserError("; ".join([*why, *([advice] if advice else [])]))
    codes = {getattr(each, "exit_code", found.exit_code) for _, each in failures}
    if len(codes) == 1:
        found.exit_code = codes.pop()
    return found


class LateSource:
    """A source that is opened when it is first needed, and again after it could not be."""

    def __init__(self, place: str, open_it: Callable[[str], Source]) -> None:
        self.name, self._open = place, open_it
        self.is_near = "://" not in place or place.startswith("file://")
        self._lock = threading.Lock()
        self._source: Source | None = None

    def _opened(self) -> Source:
        with self._lock:
            if self._source is None:
                self._source = self._open(self.name)
            return self._source

    def origin(self) -> Origin:
        return self._opened().origin()

    def snapshots(self) -> list[SnapshotRecord]:
        return self._opened().snapshots()

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        return self._opened().objects(pointers, urgent=urgent, bases=bases)

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        return self._opened().bases(runs)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        return self._opened().tables(record, limit_bytes)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return self._opened().hot(record)

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        self._opened().claim(generation, holder, note)

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        self._opened().hold(record, holder, seconds)

    def keys(self) -> bytes:
        return self._opened().keys()

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.close()
                self._source = None
