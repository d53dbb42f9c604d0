"""One drill from end to end: which snapshot, its scratch mount, the check, and what was measured.

A drill that is not over in its time has failed, whatever it waits for: the source, the mount, the check, or the rest of
the state. A source that does not say which snapshots it has, before a drill or after one that failed, gives no verdict
on any.

The clock of all spans starts before the first byte is requested of the source: as if this host began to recover
then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from snapfs.base.errors import SnapfsError, UserError
from snapfs.base.settings.replication_settings import plain_url
from snapfs.commands.drills.check_process import CheckContext, CheckFailedError, CheckImpossibleError
from snapfs.commands.drills.drill_checks import Check, check_named
from snapfs.commands.drills.drill_process import DrillProcess
from snapfs.commands.drills.drill_report import DrillResult
from snapfs.commands.drills.scratch_mount import (
    MOUNT,
    NotMountableError,
    ScratchMount,
    mounted_scratch,
    scratch_folder,
)
from snapfs.commands.support.bounded_look import WAIT_S, NoAnswerError, look
from snapfs.store.log import branches
from snapfs.store.log.snapshot_records import GOOD, SnapshotRecord
from snapfs.transfer.lazy.snapshot_choice import branch_of, is_meant, snapshots_of
from snapfs.transfer.sources.remote_history import distant_repository
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source

_SAY_S: Final = 2.0
"""So much longer the drill itself has to say that its time is over: it knows better where it was."""
_ROOM_BYTES: Final = 16 << 20
"""With less room left in the scratch place a failed check is no verdict: a mount keeps some room for itself."""


@dataclass(frozen=True, slots=True)
class DrillOrder:
    """What to drill. `place`: a folder or URL; `whole`: wait until all of the state is here; `tries`: how many
    snapshots, the newest first, until one recovers."""

    place: str
    access: Access
    check: str
    at: str | None = None
    timeout_s: float = 600.0
    rto_s: float = 0.0
    whole: bool = True
    tries: int = 2
    scratch: str | None = None


def drill(order: DrillOrder, done: Callable[[DrillResult], None]) -> list[DrillResult]:
    """Drill the newest snapshot, and while that fails the one before. `done(result)` after each.

    Raises what the place raises, UserError (CheckImpossibleError) if the check cannot be run here, SnapfsError if the
    source was lost meanwhile.
    """
    check, results = check_named(order.check), list[DrillResult]()
    for record in chosen(order):
        result = _drill_one(order, check, record)
        if not result.passed:
            _check_source(order, result)
        result.instead_of = results[0].record.number if results else 0
        results.append(result)
        done(result)
        if result.passed:
            break
    return results


def chosen(order: DrillOrder) -> list[SnapshotRecord]:
    """The snapshots to try, in their order. UserError if there is none; SnapfsError if that takes too long."""
    try:
        found: list[SnapshotRecord] = look(partial(_chosen, order), order.timeout_s)
    except NoAnswerError:
        raise SnapfsError(f"{plain_url(order.place)} does not answer: it is not known which snapshots it has") from None
    return found


def _check_source(order: DrillOrder, result: DrillResult) -> None:
    """SnapfsError if the source does not answer now: what failed may be that, not the snapshot."""
    place, number = plain_url(order.place), branches.reference(result.record)
    try:
        look(partial(_look_at_source, order), min(order.timeout_s, WAIT_S))
    except NoAnswerError:
        lost = f"{place} does not answer any more"
    except SnapfsError as error:
        lost = f"{place} cannot be read any more: {error}"
    else:
        return
    raise SnapfsError(f"{lost}; so this says nothing of snapshot {number}: {result.why}. Drill again when it is back")


def _look_at_source(order: DrillOrder) -> None:
    with contextlib.closing(late_source(order.place, order.access)) as source:
        snapshots_of([source])


def _chosen(order: DrillOrder) -> list[SnapshotRecord]:
    source = late_source(order.place, order.access, whole_history=order.at is not None)
    with contextlib.closing(source):
        _, snapshots = snapshots_of([source])
        if order.at is not None:
            found = [record for record in snapshots if is_meant(record, order.at)] or branch_of([source], order.at)
            if not found:
                raise UserError(f"{plain_url(order.place)} has no snapshot {order.at}: `snapfs list` shows what it has")
            return found[-1:]
    good = [record for record in snapshots if record.state == GOOD]
    if not good:
        raise UserError(f"{plain_url(order.place)} has no good snapshot: `snapfs list` shows what it has")
    return good[: -order.tries - 1 : -1]


def _drill_one(order: DrillOrder, check: Check, record: SnapshotRecord) -> DrillResult:
    """In a process of its own, which nobody waits for beyond the timeout."""
    age_s = max(time.time() - record.cut_time_ns / 1e9, 0.0)
    result = DrillResult(order.place, record, order.check, age_s, order.rto_s)
    stage = "its mount did not answer"
    with scratch_folder(order.scratch) as folder:
        begun_s = time.monotonic()
        work = partial(_work, order, check, replace(result), folder, begun_s)
        with DrillProcess(work, folder, folder / MOUNT) as process:
            try:
                for stage, result in process.reports(begun_s + order.timeout_s + _SAY_S):  # noqa: B007 - the last stands
                    pass
            except NoAnswerError:
                if not result.why and (order.whole or not result.passed):
                    result.passed, result.why = False, f"it did not end in its time: {stage}"
                result.ended_s = result.ended_s or time.monotonic() - begun_s
    return result


def _work(
    order: DrillOrder, check: Check, result: DrillResult, folder: Path, begun_s: float, report: Callable[[object], None]
) -> None:
    """The drill itself. What is reported last stands: how far it is (what would be waited for), and what was found."""
    with contextlib.ExitStack() as stack:
        try:
            mounted = stack.enter_context(mounted_scratch(folder, order.place, order.access, result.record))
        except NotMountableError as error:
            result.why = _verdict(str(error), folder)
            report(("", result))
            return
        result.mount_s = time.monotonic() - begun_s
        report(("its check waited for what it needs", result))
        _check(order, check, mounted, result, begun_s)
        report(("not all of the state arrived", result))
        if result.passed and order.whole:
            _wait_whole(mounted, result, begun_s, begun_s + order.timeout_s)
        with contextlib.suppress(OSError):
            result.fetched_bytes = mounted.fetched_bytes()
        report(("", result))


def _wait_whole(mounted: ScratchMount, result: DrillResult, begun_s: float, end_s: float) -> None:
    """Until all of the state is here, which belongs to what is to be proven."""
    try:
        if mounted.wait_whole(end_s):
            result.whole_s = time.monotonic() - begun_s
            return
        why = "its check passed, but it did not end in its time: not all of the state arrived"
    except OSError as error:
        why = f"its check passed, but the mount failed before all of the state was here: {error}"
    result.passed, result.why = False, _verdict(why, mounted.scratch)


def _check(order: DrillOrder, check: Check, mounted: ScratchMount, result: DrillResult, begun_s: float) -> None:
    """Run the check, and note what came of it."""
    context = CheckContext(
        Path(mounted.mount), mounted.scratch, branches.reference(result.record), begun_s + order.timeout_s,
        lambda: distant_repository(order.place, order.access),
    )  # fmt: skip
    try:
        check(context)
        result.passed = True
    except CheckFailedError as error:
        result.why = _verdict(str(error), mounted.scratch)
    except OSError as error:  # of the mount: what it needs cannot be had
        result.why = _verdict(f"the mount failed: {error}", mounted.scratch)
    finally:
        result.ended_s = time.monotonic() - begun_s
        context.close()
    result.ready_s = None if context.ready_s is None else context.ready_s - begun_s
    result.lines = context.lines


def _verdict(why: str, scratch: Path) -> str:
    """Why the check failed. CheckImpossibleError if it did for want of room here, which says nothing of a snapshot."""
    if (
        any(os.strerror(number) in why for number in (errno.ENOSPC, errno.EDQUOT))
        or shutil.disk_usage(scratch).free < _ROOM_BYTES
    ):
        raise CheckImpossibleError(f"{scratch.parent} has no room for the drill: choose another with --scratch ({why})")
    return why
