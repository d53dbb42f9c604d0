"""Who may write a mirror's volume: the claimed generation, what its writers went on from, and their other targets.

Invariants:
1. The generation never falls, over restarts too. A claim is a line in the log, durable before it is answered, and
   only then is it followed; volume.toml is brought up to it afterwards, at the next opening if need be.
2. Every change of the volume calls a fence under the receiver's lock, which claims take too: after a claim was answered
   no request of an older generation, or of another writer, changes a byte.

The rules are in generation_rules.py. Synchronous; the caller holds the receiver's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from replicator.volumes.generation_rules import Claimed, ClaimVerdict, judge_claim, judge_write
from replicator.volumes.mirror_encrypted import EncryptedVolume
from snapfs.base.blocks import MAX_GENERATION, Generation
from snapfs.base.errors import UserError
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.claims import ClaimWriter, Succession, went_on_from, with_succession
from snapfs.store.log.log_lines import Event
from snapfs.store.log.peers import Peers, decoded, with_peers
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.store.repository.repository import Repository


class WriterClaims:
    """The claims of writers to one volume. `encrypted` is None where the mirror sees the plain content."""

    def __init__(self, volume: Volume, name: str, repository: Repository, encrypted: EncryptedVolume | None) -> None:
        self._volume, self._name, self._repository, self._encrypted = volume, name, repository, encrypted
        self.claimed = Claimed()
        self.successions: list[Succession] = []
        self.peers: Peers | None = None

    def apply(self, event: Event) -> None:
        """Follow an event of the log: a claim counts."""
        if event.kind == "claimed":
            generation, writer_id = Generation(event.fields["generation"]), event.fields["holder"]
            self.claimed = Claimed(generation, writer_id)
            succession = Succession(generation, writer_id, event.fields.get("snapshot", 0))
            self.successions = with_succession(self.successions, succession)
            self.peers = with_peers(self.peers, decoded(event.fields.get("peers")), writer_id)

    def adopt_generation(self) -> None:
        """A volume that was mounted here, or came as a copy, has generations without a claim in the log."""
        newest = max((record.generation for record in self._repository.snapshots()), default=Generation(0))
        mounted = self._volume.generation if self._volume.generation > 1 else Generation(0)
        if max(newest, mounted) > self.claimed.generation:
            self.claimed = Claimed(Generation(max(newest, mounted)))
        self._bring_up_volume()

    def claim(
        self, generation: Generation, writer_id: str, note: str, snapshot: int, peers: Peers | None, by: str = ""
    ) -> None:
        """See MirrorVolume.claim. Raises RefusedError, OSError."""
        wanted = Claimed(generation, writer_id)
        if judge_claim(self.claimed, wanted) is not ClaimVerdict.GRANTED:
            raise self._fenced(wanted)
        successions = with_succession(self.successions, Succession(generation, writer_id, snapshot))
        known = with_peers(self.peers, peers, writer_id)
        if wanted != self.claimed or successions != self.successions or known != self.peers:
            if self._encrypted is not None and wanted != self.claimed:
                self._encrypted.another_writer()
            more: dict[str, Any] = {"peers": msgspec.to_builtins(known)} if known != self.peers else {}
            if by:
                more["by"] = by
            self._repository.record_event(
                "claimed", generation=generation, holder=writer_id, note=note, snapshot=snapshot, **more
            )
            self.claimed, self.successions, self.peers = wanted, successions, known
        self._bring_up_volume()

    def promote(self, writer_id: str, by: str = "") -> None:
        """Claim the next generation. Raises OSError; UserError if there is no next one."""
        if self.claimed.generation >= MAX_GENERATION:
            raise UserError(f"{self._name} has used all its {MAX_GENERATION:,} generations: clone it into a new volume")
        self.claim(Generation(self.claimed.generation + 1), writer_id, "promoted", 0, None, by)

    def fence(self, generation: Generation, writer_id: str) -> Callable[[], None]:
        """A check to call at the instant of a write. It raises RefusedError if another writer has claimed."""

        def check() -> None:
            verdict = judge_write(self.claimed, Claimed(generation, writer_id))
            if verdict is ClaimVerdict.UNCLAIMED:
                why = f"generation {generation} of {writer_id} has not been claimed on {self._name}: claim it first"
                claimed = self.claimed
                raise refuse(Refusal.UNCLAIMED, why, generation=claimed.generation, writer_id=claimed.writer_id)
            if verdict is ClaimVerdict.FENCED:
                raise self._fenced(Claimed(generation, writer_id))

        return check

    def _fenced(self, writer: Claimed) -> RefusedError:
        claimed = self.claimed
        why = (
            f"generation {writer.generation} of {writer.writer_id} may not write {self._name} any more: "
            f"{claimed.writer_id or 'another writer'} has claimed generation {claimed.generation}"
        )
        base = went_on_from(ClaimWriter(writer.generation, writer.writer_id, writer.generation), self.successions)
        return refuse(
            Refusal.FENCED, why, generation=claimed.generation, writer_id=claimed.writer_id, went_on_from=base
        )

    def _bring_up_volume(self) -> None:
        if self._volume.generation < self.claimed.generation:
            self._volume.bump_generation(self.claimed.generation)
