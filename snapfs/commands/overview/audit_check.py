"""Proof of a volume's audit trail: its chain, its witness on this host, its targets, and its signed checkpoints.

The rules are in store/audit; this reads what they judge.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_ATTENTION, EXIT_CORRUPT, EXIT_OK, CorruptionError, SnapfsError, VersionError
from snapfs.base.settings.replication_settings import expanded, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.audit.audit_trail import Trail, own_findings, trail_of, unproven, witnessed
from snapfs.store.audit.checkpoints import Checkpoints, public_key
from snapfs.store.log.claims import Succession
from snapfs.store.log.log_lines import Line
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.repository.store_folders import LOG
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source


@dataclass(slots=True)
class Proof:
    """`findings`: what contradicts the log; `unknown`: targets that could not be asked; `through`: by target;
    `unproven`: takeovers that nobody but the log itself knows of."""

    lines: int = 0
    findings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)
    through: dict[str, int] = field(default_factory=dict)
    checkpoints: int = 0
    signed_through: int | None = None
    signed_ns: int | None = None

    @property
    def exit_code(self) -> int:
        """Not EXIT_OK where a witness could not be asked, what it would have said is not known; nor where those that
        were asked do not know of a takeover, behind which anything may have been."""
        if self.findings:
            return EXIT_CORRUPT
        return EXIT_ATTENTION if self.unknown or (self.unproven and self.through) else EXIT_OK

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.exit_code == EXIT_OK, "lines": self.lines, "findings": self.findings, "unknown": self.unknown,
            "unproven": self.unproven,
            "witnessed": self.through, "checkpoints": self.checkpoints, "signed_through_line": self.signed_through,
            "signed_time_ns": self.signed_ns,
        }  # fmt: skip


def prove(volume: Volume, key_path: str | None) -> Proof:
    """Check all of it. `key_path`: the public key of checkpoints, None: that of audit.sign_key, if there is one.

    UserError if there is no log or no such key; VersionError. Damage is a finding.
    """
    proof = Proof()
    key_path = key_path or volume.config.audit.sign_key
    checkpoints = Checkpoints(volume.volume_id, public_key(key_path)) if key_path else None
    log = SnapshotLog(os.path.join(volume.store_dir, LOG), Disk(), readonly=True)
    try:
        trail = trail_of(_checked(log, proof, checkpoints))
    except CorruptionError as error:
        proof.findings.append(str(error))
        return proof
    finally:
        log.close()
    proof.lines = trail.lines
    proof.findings.extend(own_findings(trail))
    if checkpoints is not None:
        proof.checkpoints, proof.signed_through = checkpoints.found, checkpoints.through or None
        proof.signed_ns = checkpoints.through_ns or None
        if not checkpoints.found:
            proof.findings.append(
                "no checkpoint is signed, though a key is configured: none was due yet, or they are lost"
            )
    successions = _ask_targets(volume, trail, proof)
    proof.unproven.extend(unproven(trail, successions, proof.signed_through or 0))
    return proof


def _checked(log: SnapshotLog, proof: Proof, checkpoints: Checkpoints | None) -> Iterator[Line]:
    number = 0
    for number, line in enumerate(log.follow_lines(), 1):
        if checkpoints is not None:
            proof.findings.extend(checkpoints.findings(number, line))
        yield line
    if log.lost_lines:
        raise log.damage_of_loss()


def _ask_targets(volume: Volume, trail: Trail, proof: Proof) -> list[Succession]:
    """The takeovers that they know of."""
    settings, known = volume.config.replication, list[Succession]()
    for each in settings.target:
        name = target_name(each)
        try:
            source = late_source(expanded(each).url, Access.of(each, settings.encryption), whole_history=True)
            with contextlib.closing(source):
                if source.origin().identity.volume_id != volume.volume_id:
                    proof.findings.append(f"{name}: it keeps another volume")
                    continue
                proof.through[name], found = witnessed(trail, name, source.snapshots(), volume.generation)
                known += source.successions()
            proof.findings.extend(found)
        except VersionError:
            raise
        except (OSError, SnapfsError) as error:
            proof.unknown.append(f"{name}: {error}")
    return known
