"""What only a mirror of an encrypted volume keeps, besides ciphertext: the wrapped keys, and what mounts read first.

    VOLUME/keys.json          as in the volume itself (snapfs/store/crypto/keys.py); no secret without the owner's key
    VOLUME/store/first/N      of snapshot N, the numbers that a mount of it reads first, in order: 8 bytes each
    VOLUME/store/needed       what has to be here (snapfs/store/repository/required_objects.py)

Invariants:
1. Keys are replaced by keys of the same volume and ring with a serial that is not lower: none of them is ever lost.
2. Space is freed only when the writer has named all that lives, for exactly the snapshots there are, and there is no
   branch: what one needs is not known here. Any commit or claim in between, and it begins anew.
3. Under a lock only that is freed which was named dead for as long as the lock is (mirror_lives.py), and keys that
   others replaced stay beside them, as keys.json.SERIAL, for as long.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from typing import Final

from replicator.volumes.mirror_lives import Lives
from snapfs.base.blocks import Disk, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.base.volumes.volume_files import KEYS_FILE
from snapfs.store.crypto.keys import MAX_KEYS_BYTES, WrappedKeys, read_keys, write_keys
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.protocol import messages, number_runs, wire
from snapfs.store.protocol.hint_files import FIRST
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.repository.compaction import CollectReport
from snapfs.store.repository.repository import Repository

FIRST_FOLDER: Final = "first"
_OLD_KEYS: Final = re.compile(re.escape(KEYS_FILE) + r"\.[0-9]+")


class EncryptedVolume:
    """What a mirror keeps of one encrypted volume. The caller holds the receiver's locks."""

    def __init__(self, volume: Volume, receiver: Receiver, disk: Disk) -> None:
        self._volume, self._receiver, self._disk = volume, receiver, disk
        self._folder = os.path.join(volume.store_dir, FIRST_FOLDER)
        self._live = NumberSet()
        self._lives = Lives(volume.store_dir, disk)
        self._begun_at = -1
        """The log's length when the writer began to list what lives; -1: it has not."""

    # -- keys

    def keys(self) -> bytes:
        """The wrapped keys; b"" if there are none yet. Raises SnapfsError."""
        found = read_keys(self._volume.path)
        return b"" if found is None else found.encode()

    def put_keys(self, data: bytes, lock_s: float) -> None:
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
            if lock_s and known is not None:
                self._disk.replace_file("keys:keep", f"{self._keys_path}.{known.serial}", known.encode())
            write_keys(self._volume.path, wrapped, self._disk)

    @property
    def _keys_path(self) -> str:
        return os.path.join(self._volume.path, KEYS_FILE)

    def forget_keys(self, lock_s: float) -> None:
        """Remove replaced keys that no lock keeps any more. Raises OSError."""
        for name in os.listdir(self._volume.path):
            path = os.path.join(self._volume.path, name)
            if _OLD_KEYS.fullmatch(name) and os.stat(path).st_mtime + lock_s <= time.time():
                self._disk.unlink("keys:forget", path)

    # -- what is read first

    def put_first(self, snapshot: SnapshotNumber, numbers: Sequence[int]) -> None:
        """A hint: not durable, and what goes wrong with it keeps nothing from being committed."""
        path = os.path.join(self._folder, str(snapshot))
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                self._disk.mkdir("first:folder", self._folder)
            self._disk.replace_unsynced("first:write", path, FIRST.encode(_packed(numbers)))

    def first(self, snapshot: SnapshotNumber) -> list[Number]:
        with contextlib.suppress(OSError, SnapfsError):
            data = FIRST.read(os.path.join(self._folder, str(snapshot))) or b""
            return [Number(int.from_bytes(data[at : at + 8], "little")) for at in range(0, len(data) - 7, 8)]
        return []

    def dropped(self, snapshot: SnapshotNumber) -> None:
        with contextlib.suppress(OSError):
            self._disk.unlink("first:remove", os.path.join(self._folder, str(snapshot)))

    # -- space

    def another_writer(self) -> None:
        """Discard the list of live objects: it was another writer's, and frees nothing any more. Raises OSError."""
        self._lives.void()

    def collect(self, manifest: messages.Collect, *, branches: bool, lock_s: float) -> CollectReport | None:
        """Take in what lives; with the last of it, free the rest. None until then. Raises RefusedError, OSError."""
        repository = self._receiver.repository
        if manifest.begins:
            self._live, self._begun_at = NumberSet(), repository.log.lines
        if self._begun_at != repository.log.lines:
            self._begun_at = -1
            raise refuse(Refusal.INCOMPLETE, "something else has happened here meanwhile: list all that lives again")
        for first, last in number_runs.unpack_needs(manifest.live):
            if last - first > wire.MAX_LACKS_NUMBERS:
                raise refuse(Refusal.TOO_LARGE, f"a run of more than {wire.MAX_LACKS_NUMBERS} numbers")
            for number in range(first, last + 1):
                self._live.add(number)
        if not manifest.ends:
            return None
        self._begun_at = -1
        here = {record.number for record in repository.snapshots()}
        if branches or not here <= set(manifest.snapshots):
            return CollectReport()
        return self._free(repository, lock_s)

    def _free(self, repository: Repository, lock_s: float) -> CollectReport:
        live, self._live = self._live, NumberSet()
        for record in repository.snapshots():
            live.add(record.root.number)
            live.add(record.last_number)
        if lock_s:
            for number in self._receiver.required.since_collection():
                live.add(number)
            locked = self._lives.record(live, lock_s, repository.clock())
            if locked is None:
                self._receiver.required.keep(self._receiver.required.numbers())  # all of it has been looked at
                return CollectReport()
            live = locked
        else:
            self._lives.void()
        self._receiver.required.keep(live)  # first: what is freed must not be missed
        try:
            with repository.collection() as collection:
                return collection.run(live)
        except CorruptionError as error:
            raise refuse(Refusal.INTERNAL, f"nothing was freed: {error}") from None


def _packed(numbers: Sequence[int]) -> bytes:
    return b"".join(number.to_bytes(8, "little") for number in numbers)
