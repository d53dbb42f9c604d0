"""The command `diff`: what changed between two snapshots, by path, with lines counted or as a patch."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from snapfs.base.settings import exclusion
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.commands.support.two_places import check_shared
from snapfs.store.tables.snapshot import SnapshotTree

if TYPE_CHECKING:
    from snapfs.store.history.file_patch import FileChange
    from snapfs.store.tables.diff import PathChange

_KINDS = ("added", "removed", "changed", "renamed", "excluded")
_SIGNS = {"added": "+", "removed": "-", "changed": "M", "renamed": "R", "excluded": "x"}


@click.command("diff", short_help="Show what changed between two snapshots.")
@click.argument("place", shell_complete=folders)
@click.argument("older", metavar="A")
@click.argument("newer", metavar="B")
@click.option("--summary", is_flag=True, help="Only the totals.")
@click.option("--stat", is_flag=True, help="With the lines added and removed, of what is no text the sizes.")
@click.option("--patch", is_flag=True, help="As a patch that git and patch(1) apply.")
@click.option(
    "--with", "other", metavar="PLACE2", help="B is a snapshot of this one: a fork of PLACE, or what that is a fork of."
)
@with_access
@json_option
def diff(
    place: str, older: str, newer: str, summary: bool, stat: bool, patch: bool, other: str | None, given: Given,
    as_json: bool,
) -> None:  # fmt: skip
    """Show what changed from snapshot A to snapshot B: `+` added, `-` removed, `M` changed, `R` renamed.

    PLACE may be a target's URL: what does not differ is not fetched; BRANCH/NUMBER is one of a branch there.
    The bytes are those of the blocks that differ. What B was made without (snapshots.exclude) is not removed but left
    out, shown with `x`: whether it was still there is in no snapshot. With --json, one object a line.
    """
    from snapfs.commands.support.left_out import LeftOut
    from snapfs.store.history.file_patch import FileChange
    from snapfs.store.tables.diff import diff_paths

    if summary + stat + patch > 1:
        raise click.UsageError("--summary, --stat and --patch exclude each other.")
    totals: Counter[str] = Counter(dict.fromkeys((*_KINDS, "changed_bytes"), 0))
    with opened(place, given) as repository, contextlib.ExitStack() as stack:
        second = repository
        if other is not None:
            if "://" in place:
                raise click.UsageError("--with belongs to a PLACE of this host.")
            where = locate(other)
            check_shared(locate(place), where)
            second = stack.enter_context(where.repository())
        records = [repository.find_anywhere(older), second.find_anywhere(newer)]
        a, b = SnapshotTree(repository, records[0].root), SnapshotTree(second, records[1].root)
        left_out = LeftOut(records[1].cut.exclude)
        changes = FileChange.all(a, b) if stat or patch else diff_paths(a, b)
        for each in changes:
            change = each.change if isinstance(each, FileChange) else each
            kind = left_out.kind_of(change)
            totals[kind] += 1
            totals["changed_bytes"] += change.changed_bytes
            if isinstance(each, FileChange):
                _show_file(each, kind, patch, as_json, totals)
            elif not summary:
                _show(change, kind, as_json)
    if as_json:
        patterns = {"excluded": {"a": records[0].cut.exclude, "b": records[1].cut.exclude}}
        return output.emit_line({"totals": totals} | (patterns if any(patterns["excluded"].values()) else {}))
    for record in records:
        for remark in exclusion.remarks(record.cut.exclude, record.number):
            output.remark(output.printable(remark))
    counts = ", ".join(f"{totals[kind]} {kind}" for kind in _KINDS if totals[kind])
    lines = f"; {totals['lines_added']} lines added, {totals['lines_removed']} removed" if stat else ""
    line = f"{counts or 'no difference'}; {output.size(totals['changed_bytes'])}{lines}"
    return (click.echo if summary else output.remark)(line)


def _facts(change: PathChange, kind: str) -> dict[str, Any]:
    facts = {"kind": kind, **output.path_facts(change.path), "changed_bytes": change.changed_bytes}
    if change.old_path:
        facts |= {f"old_{key}": value for key, value in output.path_facts(change.old_path).items()}
    return facts


def _names(change: PathChange, kind: str) -> str:
    origin = f"{output.printable(change.old_path)} -> " if change.old_path else ""
    return f"{_SIGNS[kind]} {origin}{output.printable(change.path)}"


def _show(change: PathChange, kind: str, as_json: bool) -> None:
    if as_json:
        return output.emit_line(_facts(change, kind))
    amount = f"  ({output.size(change.changed_bytes)})" if change.changed_bytes else ""
    return click.echo(f"{_names(change, kind)}{amount}")


def _show_file(file: FileChange, kind: str, patch: bool, as_json: bool, totals: Counter[str]) -> None:
    change = file.change
    if kind == "excluded":
        return _show(change, kind, as_json)
    if patch:
        if as_json:
            return output.emit_line(_facts(change, kind) | _patch_facts(b"".join(file.patch())))
        for piece in file.patch():
            sys.stdout.buffer.write(piece)
        return None
    lines = file.counted()
    if lines is not None:
        totals["lines_added"] += lines[0]
        totals["lines_removed"] += lines[1]
    if as_json:
        return output.emit_line(_facts(change, kind) | _stat_facts(file, lines))
    return click.echo(f"{_names(change, kind)} | {_stat_words(file, lines)}")


def _patch_facts(patch: bytes) -> dict[str, str]:
    try:
        return {"patch": patch.decode()}
    except UnicodeDecodeError:
        return {"patch": patch.decode(errors="replace"), "patch_hex": patch.hex()}


def _stat_facts(file: FileChange, lines: tuple[int, int] | None) -> dict[str, Any]:
    added, removed = lines if lines is not None else (None, None)
    sizes = [each.size if each is not None else None for each in (file.before, file.after)]
    return {"lines_added": added, "lines_removed": removed, "old_size": sizes[0], "new_size": sizes[1]}


def _stat_words(file: FileChange, lines: tuple[int, int] | None) -> str:
    if lines is not None:
        return ", ".join(f"{count} {sign}" for count, sign in zip(lines, "+-", strict=True) if count) or "no lines"
    now = file.after or file.before
    if now is not None and not stat.S_ISREG(now.mode):
        return "directory" if stat.S_ISDIR(now.mode) else "no regular file"
    old, new = (output.size(each.size) if each is not None else "nothing" for each in (file.before, file.after))
    return f"{old} -> {new}, {output.size(file.change.changed_bytes)} changed"


COMMANDS = (diff,)
