"""What the intent logs of the last life contain together: which files are dirty, and how exactly that is known.

Invariant: what is found dirty includes every difference from the last snapshot. Of a log of this life of the host's
filesystem (host_life.py), or of one that was closed in order, that is its exact blocks; of a log of another life, each
file that it lists, in full, and each file that was new in it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.intents import intents_mark
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intent_records import ParsedLog, read_log


@dataclass(slots=True)
class Findings:
    """What the logs contain together. Files at or above `new_from` are new, and dirty by that alone."""

    dirty: dict[Ino, DirtyMap] = field(default_factory=dict)
    new_from: Ino = Ino(0)
    unclean: bool = False
    power_cut: bool = False
    listed: set[Ino] = field(default_factory=set)
    listed_from: Ino | None = None
    last_sequence: int = 0
    paths: list[str] = field(default_factory=list)
    noted_times: dict[Ino, tuple[int, int]] = field(default_factory=dict)

    def mark_whole(self, ino: Ino) -> None:
        """All of this file is dirty."""
        self.dirty.setdefault(ino, DirtyMap()).mark_whole()


def find_changes(folder: str, boot_id: str, backing: Backing, adopting: bool, repairs: list[str]) -> Findings:
    """As `read_findings`, but where the host failed to write anything back, no log counts as exact. OSError.

    An adopting daemon checks the host later (suspect_files.py).
    """
    lines: list[str] = []
    findings = read_findings(folder, boot_id, lines)
    if findings.unclean and not findings.power_cut and not adopting:
        try:
            backing.sync_all("recovery:host")
        except OSError as failure:
            if not backing.health.take_suspicion():
                raise
            lines = [f"the host failed to write to its disk ({failure.strerror}): files in use are compared in full"]
            findings = read_findings(folder, "", [])
    if not adopting:
        repairs += lines
    return findings


def read_findings(folder: str, boot_id: str, repairs: list[str]) -> Findings:
    """Join the logs in `folder`; adds to `repairs` what was found wrong. OSError, VersionError."""
    findings = Findings()
    logs = _read_logs(folder, findings)
    intents_mark.judge(folder, boot_id, logs)
    for log in logs:
        _add(findings, log, boot_id)
        findings.noted_times.update(log.noted_times)
        if log.damaged:
            repairs.append(f"{log.path} {log.why}: all files are compared in full for the next snapshot")
    lost = [log.new_from for log in logs if not _is_exact(log, boot_id)]
    live = [log.new_from for log in logs if not log.sealed]
    findings.unclean = not logs or not all(log.clean for log in logs)
    findings.power_cut = bool(lost) or not logs
    findings.new_from = min(lost + live, default=Ino(0))
    findings.listed = set[Ino]().union(*(log.files for log in logs))
    findings.listed_from = min((log.new_from for log in logs), default=None)
    if logs:
        _report_end(findings, repairs)
    return findings


def _read_logs(folder: str, findings: Findings) -> list[ParsedLog]:
    logs: list[ParsedLog] = []
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        findings.paths.append(path)
        with contextlib.suppress(ValueError):
            findings.last_sequence = max(findings.last_sequence, int(name.partition(".")[0], 16))
        log = read_log(path)
        if log is not None:
            logs.append(log)
    return logs


def _report_end(findings: Findings, repairs: list[str]) -> None:
    """Add a line about how the last life ended."""
    if findings.power_cut:
        repairs.append(
            "the machine stopped, or the disk's filesystem was unmounted, without warning: "
            "files in use are compared in full for the next snapshot"
        )
    elif findings.unclean:
        repairs.append("the last mount did not end in order: what it had changed is known from the intent log")


def _is_exact(log: ParsedLog, boot_id: str) -> bool:
    return not log.damaged and (log.clean or log.boot_id == boot_id)


def _add(findings: Findings, log: ParsedLog, boot_id: str) -> None:
    exact = _is_exact(log, boot_id)
    if exact and log.sealed:
        return
    for dirty in log.files.values() if not exact else ():
        dirty.mark_whole()
    for ino, dirty in log.changed():
        findings.dirty.setdefault(ino, DirtyMap()).join(dirty)
