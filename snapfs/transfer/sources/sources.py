"""Where a lazily mounted volume reads its history: another volume's folder, a mirror's, or a mirror.

A `Source` delivers objects by number, framed as they lie in a segment, each with its content hash; the receiver checks
them (fetcher.py). A source leaves out what it does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from snapfs.base.blocks import Generation
from snapfs.base.errors import SnapfsError, UserError
from snapfs.store.gates.gate_entries import GateEntry
from snapfs.store.log.claims import Succession
from snapfs.store.log.holds import HoldRecord
from snapfs.store.log.peers import AskedTarget
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.objects.format import Pointer
from snapfs.store.protocol.hot_codec import Hot
from snapfs.store.protocol.number_runs import Run
from snapfs.store.protocol.object_stream import Item


@dataclass(frozen=True, slots=True)
class Origin:
    """The identity of a history, the newest generation that was claimed there, and the newest snapshot there."""

    identity: StoreIdentity
    generation: Generation
    newest: SnapshotRecord | None = None


class Source(Protocol):
    """All methods from any thread. OSError or SnapfsError where it fails as a whole."""

    name: str
    is_near: bool
    """On this host: tried first, and not worth waiting for."""

    def origin(self) -> Origin:
        """The store's identity and state."""

    def snapshots(self) -> list[SnapshotRecord]:
        """The snapshots, ascending by number."""

    def branches(self) -> list[SnapshotRecord]:
        """The snapshots of branches, each with its `branch` (branches.py): to be read, and never gone on from."""

    def objects(self, pointers: Sequence[Pointer], *, urgent: bool = True, bases: bool = True) -> Iterator[Item]:
        """Those of the objects that it has; with `bases` each after the full objects it is a difference to.

        A pointer without a content hash (b"") means the object of that number, whatever it is.
        """

    def bases(self, runs: Sequence[Run]) -> list[Run]:
        """The full objects that those of the objects that it has are differences to; as far as that is cheap to
        find."""

    def tables(self, record: SnapshotRecord, limit_bytes: int) -> Iterator[Item]:
        """The beginning of a snapshot's tables, in one round trip: root page, the way to the root directory, more."""

    def hot(self, record: SnapshotRecord) -> list[Hot]:
        """What the last run used most, hottest first; empty where that is not known."""

    def gates(self) -> list[GateEntry]:
        """What the snapshots have passed since they were sealed; empty where that is not kept."""

    def target_peers(self) -> AskedTarget:
        """The target's id, and the other targets that its writer named to it."""

    def successions(self) -> list[Succession]:
        """The writers that took over, each with the snapshot it went on from, as far as it is known there."""

    def claim(self, generation: Generation, writer_id: str, note: str, snapshot: int = 0) -> None:
        """Become the one writer, who goes on from `snapshot`. RefusedError where a newer generation was claimed."""

    def hold(self, record: SnapshotRecord, holder: str, seconds: float) -> None:
        """Let the snapshot stay there for so long; 0 ends it."""

    def hold_records(self) -> list[HoldRecord]:
        """What people decided to hold of this history (store/log/holds.py), as far as it is known there."""

    def keys(self) -> bytes:
        """The wrapped keys of an encrypted volume (store/crypto/keys.py), b"" of any other."""

    def close(self) -> None: ...


def needs_key(name: str) -> UserError:
    """Why an encrypted volume cannot be read."""
    return UserError(f"{name} is encrypted: give its key, with --key-file or --key-command")


def no_answer(failures: Sequence[tuple[Source, Exception]], advice: str = "") -> SnapfsError:
    """The error when each of the sources failed, with the exit code that all failures share."""
    why = [str(each) if str(each).startswith(source.name) else f"{source.name}: {each}" for source, each in failures]
    codes = {getattr(each, "exit_code", UserError.exit_code) for _, each in failures}
    words = "; ".join([*why, *([advice] if advice else [])])
    return UserError(words, exit_code=codes.pop() if len(codes) == 1 else None)
