"""Claiming the next generation at a volume's sources, before a remount or a takeover writes anything.

Invariants:
1. A generation is claimed at every source that knows claims, or not at all, unless the takeover is forced. Where a
   source knows a newer generation, a still newer one is claimed at all of them again.
2. What the last writer pushed before our claim was acknowledged to it, so it belongs to what is taken over
   (`pushed_meanwhile`). After the claim no source accepts more from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from snapfs.base.blocks import Generation, SnapshotNumber
from snapfs.base.errors import BusyError, SnapfsError
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.peers import AskedTarget, NotAsked, not_asked
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.transfer.lazy.snapshot_choice import lineage_order
from snapfs.transfer.sources.sources import Source

CLAIMS = 5


@dataclass(frozen=True, slots=True)
class ClaimedGeneration:
    """A generation that this host may write. `failed`: sources passed over by force, each with the reason."""

    generation: Generation
    failed: dict[str, str]

    @property
    def unreached(self) -> list[str]:
        """The sources in `failed`, one string each, for people."""
        return [f"{name} ({why})" for name, why in self.failed.items()]


def claim_generation(
    volume: Volume, sources: Sequence[Source], writer_id: str, force: bool, snapshot: SnapshotNumber
) -> ClaimedGeneration:
    """Claim the volume's generation at every source, as the base of which `snapshot` is recorded there.

    Raises BusyError if a source does not grant the claim and `force` is not set. Blocks on the network.
    """
    volume.lock("taking over")
    try:
        claimed = None
        failed: dict[str, str] = {}
        while claimed != volume.generation:  # a later source may know of a newer one than an earlier
            claimed, failed = volume.generation, {}
            for source in sources:
                failure = _claim_at(volume, source, writer_id, force, snapshot)
                if failure is not None:
                    failed[source.name] = str(failure)
        return ClaimedGeneration(volume.generation, failed)
    finally:
        volume.unlock()


def correct_claim(sources: Sequence[Source], generation: Generation, writer_id: str, snapshot: SnapshotNumber) -> None:
    """Claim again with another base snapshot than the claim named. A source that fails is corrected by the agent."""
    for source in sources:
        with contextlib.suppress(OSError, SnapfsError):
            source.claim(generation, writer_id, "remounted", snapshot)


def unqueried_peers(sources: Sequence[Source], claim: ClaimedGeneration) -> list[NotAsked]:
    """The targets that may have newer snapshots, by what the sources that were queried know of their peers."""
    answered: dict[str, AskedTarget] = {}
    for source in sources:
        if source.name not in claim.failed:
            with contextlib.suppress(OSError, SnapfsError):
                answered[source.name] = AskedTarget()
                answered[source.name] = source.target_peers()
    return not_asked(answered, claim.failed)


def peer_fields(peers: Sequence[NotAsked]) -> dict[str, Any]:
    """The fields of the log's "remounted" record that name unqueried peers."""
    return {"not_asked": msgspec.to_builtins(peers)} if peers else {}


def unreached_lines(unreached: Iterable[str]) -> list[str]:
    """A takeover's warnings about the sources that it could not reach, for people."""
    words = "could not be reached: it may have newer snapshots, which were acknowledged to the last writer"
    return [f"{each} {words}" for each in unreached]


def pushed_meanwhile(sources: Sequence[Source], known: Sequence[SnapshotRecord], force: bool) -> bool:
    """Whether the last writer pushed a snapshot after `known` was listed and before our claim.

    Raises BusyError if a source cannot be queried and `force` is not set.
    """
    newest = max(map(lineage_order, known), default=None)
    found = False
    for source in sources:
        try:
            last = source.origin().newest
        except (OSError, SnapfsError) as error:
            if force:
                continue
            why = "it may have snapshots that the last writer pushed before it was fenced off: try again"
            raise BusyError(f"{source.name}: {error}; {why}") from None
        found |= last is not None and (newest is None or lineage_order(last) > newest)
    return found


def _claim_at(
    volume: Volume, source: Source, writer_id: str, force: bool, snapshot: SnapshotNumber
) -> Exception | None:
    """Claim at one source. Returns the failure that `force` passes over."""
    for _ in range(CLAIMS):
        try:
            source.claim(volume.generation, writer_id, "remounted", snapshot)
            return None
        except RefusedError as error:
            if error.refusal is Refusal.FENCED and error.problem.generation >= volume.generation:
                volume.bump_generation(error.problem.generation + 1)
                continue
            failure: Exception = error
        except (OSError, SnapfsError) as error:
            failure = error
        if force:
            return failure
        raise _not_granted(source, failure) from None
    raise BusyError(f"{source.name}: others keep claiming generations: find out which host takes this volume over, too")


def _not_granted(source: Source, failure: Exception) -> Exception:
    if isinstance(failure, RefusedError) and failure.refusal is Refusal.UNSUPPORTED:
        return failure
    return BusyError(
        f"{source.name} does not let this host become the writer ({failure}): the last one might go on. "
        "See that it is down and give --force, or name a source that can fence it off"
    )
