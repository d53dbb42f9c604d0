"""What only a mirror of an encrypted volume keeps, besides ciphertext: the wrapped keys, and what mounts read first.

    VOLUME/keys.json          as in the volume itself (snapfs/store/keys.py); no secret without the owner's key
    VOLUME/store/first/N      of snapshot N, the numbers that a mount of it reads first, in order: 8 bytes each
    VOLUME/store/needed       what has to be here (snapfs/store/opaque.py)

Invariants:
1. Keys are replaced by keys of the same volume and ring with a serial that is not lower: none of them is ever lost.
2. Space is freed only when the writer has named all that lives, for exactly the snapshots there are, and no branch was
   put aside: what such a one needs nobody here knows. Any commit or claim in between, and it begins anew.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from snapfs.blocks import Disk, Number, SnapshotNumber
from snapfs.errors import CorruptionError, SnapfsError
from snapfs.store import wire
from snapfs.store.compaction import CollectReport
from snapfs.store.keys import MAX_KEYS_BYTES, WrappedKeys, read_keys, write_keys
from snapfs.store.numbers import NumberSet
from snapfs.store.receiving import Receiver
from snapfs.store.repository import Repository
from snapfs.store.wire import Refusal, refuse
from snapfs.volume import Volume

FIRST_FOLDER: Final = "first"


class Opaque:
    """Of one volume. The caller holds the receiver's locks."""

    def __init__(self, volume: Volume, receiver: Receiver, disk: Disk) -> None:
        self._volume, self._receiver, self._disk = volume, receiver, disk
        self._folder = os.path.join(volume.store_dir, FIRST_FOLDER)
        self._live = NumberSet()
        self._begun_at = -1
        """The log's length when the writer began to tell what lives; -1: it has not."""

    # -- keys

    def keys(self) -> bytes:
        """The wrapped keys; b"" if there are none yet. Raises SnapfsError."""
        found = read_keys(self._volume.path)
        return b"" if found is None else found.encode()

    def put_keys(self, data: bytes) -> None:
        """Raises RefusedError, OSError."""
        if len(data) > MAX_KEYS_BYTES:
            raise refuse(Refusal.TOO_LARGE, f"wrapped keys of {len(data)} bytes")
        try:
            wrapped = WrappedKeys.decode(data, "the request")
        except SnapfsError as error:
            raise refuse(Refusal.BAD_REQUEST, str(error)) from None
        known = read_keys(self._volume.path)
        other = wrapped.volume != self._volume.volume_id or (known is not None and known.ring != wrapped.ring)
        if other:
            raise refuse(Refusal.EXISTS, "these are another keyring's keys: what is here could not be read with them")
        if known is not None and known.serial > wrapped.serial:
            raise refuse(Refusal.DIVERGED, f"newer keys are here (serial {known.serial}): read them first")
        if wrapped != known:
            write_keys(self._volume.path, wrapped, self._disk)

    # -- what is read first

    def put_first(self, snapshot: SnapshotNumber, numbers: Sequence[int]) -> None:
        """A hint: not durable, and what goes wrong with it keeps nothing from being committed."""
        path = os.path.join(self._folder, str(snapshot))
        with contextlib.suppress(OSError):
            os.makedirs(self._folder, exist_ok=True)
            with open(f"{path}.new", "wb") as file:
                file.write(_packed(numbers))
            os.replace(f"{path}.new", path)

    def first(self, snapshot: SnapshotNumber) -> list[Number]:
        with contextlib.suppress(OSError), open(os.path.join(self._folder, str(snapshot)), "rb") as file:
            data = file.read(8 * wire.MAX_FIRST_NUMBERS)
            return [Number(int.from_bytes(data[at : at + 8], "little")) for at in range(0, len(data) - 7, 8)]
        return []

    def dropped(self, snapshot: SnapshotNumber) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, str(snapshot)))

    # -- space

    def collect(self, told: wire.Collect, *, asides: bool) -> CollectReport | None:
        """Take in what lives; with the last of it, free the rest. None until then. Raises RefusedError, OSError."""
        repository = self._receiver.repository
        if told.begins:
            self._live, self._begun_at = NumberSet(), repository.log.lines
        if self._begun_at != repository.log.lines:
            self._begun_at = -1
            raise refuse(Refusal.INCOMPLETE, "something else has happened here meanwhile: tell all that lives again")
        for first, last in wire.unpack_needs(told.live):
            if last - first > wire.MAX_LACKS_NUMBERS:
                raise refuse(Refusal.TOO_LARGE, f"a run of more than {wire.MAX_LACKS_NUMBERS} numbers")
            for number in range(first, last + 1):
                self._live.add(number)
        if not told.ends:
            return None
        self._begun_at = -1
        here = {record.number for record in repository.snapshots()}
        if asides or not here <= set(told.snapshots):
            return CollectReport()
        return self._free(repository)

    def _free(self, repository: Repository) -> CollectReport:
        live, self._live = self._live, NumberSet()
        for record in repository.snapshots():
            live.add(record.root.number)
            live.add(record.last_number)
        self._receiver.told.keep(live)  # first: what is freed must not be missed
        try:
            with repository.collection() as collection:
                return collection.run(live)
        except CorruptionError as error:
            raise refuse(Refusal.INTERNAL, f"nothing was freed: {error}") from None


def _packed(numbers: Sequence[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)

