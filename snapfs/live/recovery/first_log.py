"""The first intent log of a life: it has all that the logs of the last life have, durably, before those are removed."""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.base.blocks import Ino
from snapfs.live.backing.backing import Backing
from snapfs.live.backing.backing_files import stat_backing
from snapfs.live.content.datapath import DataPath
from snapfs.live.content.file_states import EpochFiles, FileState
from snapfs.live.intents.dirty_map import DirtyMap
from snapfs.live.intents.intent_log import Log
from snapfs.live.intents.intent_records import IntentKind, record, records_of
from snapfs.live.intents.intents import Intents
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.recovery.log_findings import Findings

BATCH_BYTES = 1 << 20


def begin(names: Namespace, backing: Backing, intents: Intents, findings: Findings, types: DataPath) -> EpochFiles:
    """Write the log and return the files of the current epoch, which are those found dirty. OSError."""
    # Below the namespace's own bound a file is known to be dirty only by being listed, as those found above are.
    new_from = max(min(findings.new_from, names.allocate_ino()), names.first_new)
    listed_from = new_from if findings.listed_from is None else min(new_from, findings.listed_from)
    log = intents.new_log(names.epoch, listed_from)
    current = EpochFiles(names.epoch, new_from)
    _append(log, _records(backing, current, log, findings, types))
    log.flush()
    intents.logs.append(log)
    intents.begin_mark()
    return current


def _append(log: Log, records: Iterator[bytes]) -> None:
    batch = bytearray()
    for each in records:
        batch += each
        if len(batch) >= BATCH_BYTES:
            log.append(bytes(batch), "recovery:intents")
            batch.clear()
    if batch:
        log.append(bytes(batch), "recovery:intents")


def _records(backing: Backing, current: EpochFiles, log: Log, findings: Findings, types: DataPath) -> Iterator[bytes]:
    """The records of all files that were found; enters each in `log.listed`, and the dirty ones in `current`."""
    for ino, dirty in sorted(findings.dirty.items()):
        if ino >= current.new_from:
            dirty.mark_whole()
        try:
            state = _dirty_state(backing, current, ino, types.taken_over(dirty), types)
        except FileNotFoundError:
            continue  # removed before the stop, or lost
        yield b"".join(records_of(ino, dirty))
        log.listed.add(ino)
        current.files[ino] = state
        current.chunks += dirty.count
    for ino in sorted(findings.listed - log.listed):
        yield record(IntentKind.LIST, ino)
        log.listed.add(ino)


def _dirty_state(backing: Backing, current: EpochFiles, ino: Ino, dirty: DirtyMap, types: DataPath) -> FileState:
    size, mtime_ns, ctime_ns, _ = stat_backing(backing.path(ino))
    state = types.file_state(ino, size, mtime_ns, ctime_ns)
    state.epoch, state.dirty = current.epoch, dirty
    return state
