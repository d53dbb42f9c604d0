"""Lines of the log about gates (store/gates/gates.py), made and checked where a repository is at hand."""

from __future__ import annotations

from typing import Any

import msgspec

from snapfs.store.gates.gates import DRILLED, PAST_THE_CACHE, VERIFIED
from snapfs.store.protocol.number_runs import runs_of
from snapfs.store.repair.verify_report import Report
from snapfs.store.repository.repository import Repository


def verified_fields(repository: Repository, report: Report, *, whole: bool) -> dict[str, Any] | None:
    """The fields of the line after a verification; None if it is worth none.

    `whole`: everything that the store has was read. A snapshot has one such line in its life, or one after each damage.
    """
    catalog = repository.catalog
    new = [number for number in report.intact if not catalog.gates(number).verified_ns]
    if not new and not whole:
        return None
    return {
        "snapshots": [list(run) for run in runs_of(new)], "how": PAST_THE_CACHE, "whole": whole,
        "objects": report.objects, "stored_bytes": report.stored_bytes,
    }  # fmt: skip


def line_of(repository: Repository, kind: str, text: str) -> dict[str, Any]:
    """The fields that another process reports, as JSON. ValueError for what is no gate, or of no snapshot here.

    `root`: the number of the root object of a drilled snapshot, which says that the same one is meant.
    """
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from None
    if kind == VERIFIED:
        runs = fields.get("snapshots")
        if not isinstance(runs, list) or any(not _is_run(run) for run in runs):
            raise ValueError("no runs of snapshots")
        return fields
    if kind != DRILLED:
        raise ValueError("it is verified or drilled")
    number = fields.get("snapshot")
    root = repository.catalog.root_number(number) if isinstance(number, int) else None
    if root is None or root != fields.get("root", root):
        raise ValueError(f"there is no snapshot {number} here, or it is another one")
    if type(fields.get("passed")) is not bool:
        raise ValueError("passed is true or false")
    return fields


def _is_run(run: object) -> bool:
    return isinstance(run, list) and len(run) == 2 and all(type(each) is int and each > 0 for each in run)
