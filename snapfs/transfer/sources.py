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

import msgspec

from snapfs.blocks import Disk, Generation, Ino, Number
from snapfs.errors import CorruptionError, UserError
from snapfs.store import codec
from snapfs.store.format import NULL, Encoding, Pointer, unpack_frame
from snapfs.store.holds import Holds
from snapfs.store.records import SnapshotRecord, StoreIdentity
from snapfs.store.repository import LOG, Repository
from snapfs.store.snapshot import SnapshotTree
from snapfs.store.stream import Item
from snapfs.store.wire import Hot, Refusal, refuse, unpack_hot
from snapfs.volume import Volume

WRITER_FILE = "writer.json"
"""In a folder that snapshots are pushed to: who does."""
HOT_FILE = "hot"
"""In a volume's or a mirror's folder: the newest hot list (wire.py has its layout)."""


class _Writer(msgspec.Struct, frozen=True):
    generation: int = 0
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose past it is: identity, and the newest generation that has been claimed there."""

    identity: StoreIdentity
    generation: Generation


class Source(Protocol):
    """All methods from any thread. OSError or SnapfsError where it fails as a whole."""

    name: str
    is_near: bool
    """On this host: asked first, and not worth waiting for."""

    def origin(self) -> Origin:
        """Whose store it is."""

    def snapshots(self) -> list[SnapshotRecord]:
        """Ascending by number."""

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True) -> Iterator[Item]:
        """Those of the objects that it has, each after the full objects it is a difference to.

        A pointer without a proof (b"") means the object of that number, whatever it is.
        """

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """The beginning of a snapshot's tables, in one round trip: root page, the way to the root directory, more."""

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        """What the last life used most, hottest first; empty where that is not known."""

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        """Become the one writer. RefusedError where a newer generation has been claimed."""

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        """Let the snapshot stay there for so long; 0 ends it."""

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
        identity = StoreIdentity(self._volume.volume_id, self._volume.seed)
        store_dir = self._volume.store_dir
        self._repository = Repository.open(store_dir, identity, Disk(), readonly=True, cache_bytes=16 << 20)
        self._refreshing = threading.Lock()

    def origin(self) -> Origin:
        newest = max((record.generation for record in self._repository.snapshots()), default=Generation(1))
        claimed = Generation(0)
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self._volume.path, WRITER_FILE), "rb") as file:
            claimed = Generation(msgspec.json.decode(file.read(), type=_Writer).generation)
        return Origin(self._repository.identity, max(self._volume.generation, newest, claimed))

    def snapshots(self) -> list[SnapshotRecord]:
        with self._refreshing:
            self._repository.refresh()
        return self._repository.snapshots()

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True) -> Iterator[Item]:
        sent: set[Number] = set()
        for pointer in pointers:
            try:
                items = [self._item(number) for number in self._with_bases(pointer.number) if number not in sent]
            except (CorruptionError, FileNotFoundError):
                continue
            if items and pointer.proof in (b"", items[-1].proof):
                sent.update(item.frame.number for item in items)
                yield from items

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
        try:
            with open(os.path.join(self.name, HOT_FILE), "rb") as file:
                return unpack_hot(file.read())
        except FileNotFoundError:
            return []

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        """A volume's own folder knows no claims. In a folder that snapshots are pushed to, the writer's name is put."""
        path = os.path.join(self._volume.path, WRITER_FILE)
        if not os.path.exists(path):
            return
        with open(path, "rb") as file:
            known = msgspec.json.decode(file.read(), type=_Writer)
        if (known.generation, known.holder) != (generation, holder):
            if known.generation >= generation:
                raise refuse(
                    Refusal.FENCED,
                    f"generation {known.generation} of {self.name} belongs to {known.holder}",
                    generation=known.generation,
                    holder=known.holder,
                )
            Disk().replace_file("claim:folder", path, msgspec.json.encode(_Writer(generation, holder)))

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


class LateSource:
    """A source that is opened when it is first needed, and again after it could not be."""

    def __init__(self, place: str, open_it: Callable[[str], Source]) -> None:
        self.name, self._open = place, open_it
        self.is_near = "://" not in place
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

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True) -> Iterator[Item]:
        return self._opened().objects(pointers, urgent=urgent)

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        return self._opened().tables(record, limit_bytes)

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        return self._opened().hot(record)

    def claim(self, generation: Generation, holder: str, note: str) -> None:
        self._opened().claim(generation, holder, note)

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        self._opened().hold(record, holder, seconds)

    def close(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.close()
                self._source = None
