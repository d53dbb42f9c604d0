"""The command `du`: what snapshots hold in the store, and what dropping them frees."""

from __future__ import annotations

import click
import msgspec

from snapfs.base.errors import UserError
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.store.history.held_bytes import TABLES, freed_by_dropping, held_alone, summed_to_depth
from snapfs.store.log.branches import reference
from snapfs.store.repository.repository import Repository, SnapshotRecord

_FILE_SCHEME = "file://"


@click.command("du", short_help="Show what snapshots take in the store.")
@click.argument("place", shell_complete=folders)
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT|FIRST-LAST]...")
@click.option("--by-path", is_flag=True, help="Of what is freed, how much belongs to which path.")
@click.option(
    "--depth", type=click.IntRange(1), default=1, show_default=True, help="Of --by-path: how many names deep."
)
@json_option
def du(place: str, snapshots: tuple[str, ...], by_path: bool, depth: int, as_json: bool) -> None:
    """Show what each snapshot of PLACE holds alone: what dropping it, and no other, frees in the store.

    With SNAPSHOTs, or ranges of numbers, what dropping all of these frees together. With --by-path, to which paths
    that belongs; without SNAPSHOTs, of all that the store has. The store lies on this host: a volume's, or a folder
    that is a target. Space is freed in the background, segment by segment.
    """
    with locate(_near(place)).repository() as repository:
        if repository.lazy is not None:
            raise UserError(f"part of the history of {place} is still on its way: `du` counts when all of it is here")
        existing = [*repository.snapshots(), *repository.catalog.branches()]
        if snapshots or by_path:
            dropped = _named(repository, snapshots) if snapshots else existing
            return _print_freed(repository, existing, dropped, by_path, depth, as_json, not snapshots)
        alone = held_alone(repository, existing)
        size = repository.index.size_bytes()
    facts = [
        {**_names(snapshot), "alone_bytes": held.stored_bytes, "alone_objects": held.objects}
        for snapshot, held in zip(existing, alone, strict=True)
    ]
    if as_json:
        return output.emit_json({"stored_bytes": size, "snapshots": facts})
    rows = [
        [output.printable(reference(snapshot)), output.utc(snapshot.cut_time_ns), output.size(held.stored_bytes),
         str(held.objects), output.printable(snapshot.name or "")]
        for snapshot, held in zip(existing, alone, strict=True)
    ]  # fmt: skip
    output.table(["NUMBER", "TIME", "ALONE", "OBJECTS", "NAME"], rows, right="NUMBER ALONE OBJECTS")
    output.remark(f"the store takes {output.size(size)}; what several snapshots hold is freed with the last of them")
    return None


def _near(place: str) -> str:
    """The place on this host."""
    if place.startswith(_FILE_SCHEME):
        return place.removeprefix(_FILE_SCHEME)
    if "://" in place:
        raise UserError(f"{place} is not on this host: `snapfs fetch` brings its history here, and `du` counts that")
    return place


def _named(repository: Repository, words: tuple[str, ...]) -> list[SnapshotRecord]:
    """The snapshots, ascending, each once."""
    found: dict[tuple[str, int], SnapshotRecord] = {}
    for word in words:
        first, dash, last = word.partition("-")
        if dash and first.isdecimal() and last.isdecimal():
            in_range = [each for each in repository.catalog.pages(int(first) - 1) if each.number <= int(last)]
            if not in_range:
                raise UserError(f"there is no snapshot from {first} to {last}; `snapfs list` shows those there are")
        else:
            in_range = [repository.find_anywhere(word)]
        found |= {(each.branch, each.number): each for each in in_range}
    return [found[key] for key in sorted(found)]


def _print_freed(
    repository: Repository, existing: list[SnapshotRecord], dropped: list[SnapshotRecord], by_path: bool, depth: int,
    as_json: bool, is_all: bool,
) -> None:  # fmt: skip
    keys = {(each.branch, each.number) for each in dropped}
    kept = [each for each in existing if (each.branch, each.number) not in keys]
    freed = freed_by_dropping(repository, dropped, kept, by_path=by_path)
    paths = summed_to_depth(freed.by_path, depth)
    if as_json:
        shown = [
            ({"tables": True} if path == TABLES else output.path_facts(path)) | msgspec.to_builtins(held)
            for path, held in paths
        ]
        facts = {"snapshots": [_names(each) for each in dropped], **msgspec.to_builtins(freed.held)}
        return output.emit_json(facts | ({"paths": shown} if by_path else {}))
    if by_path:
        rows = [
            [
                output.size(held.stored_bytes),
                str(held.objects),
                output.printable(path) if path != TABLES else "(tables)",
            ]
            for path, held in paths
        ]
        output.table(["BYTES", "OBJECTS", "PATH"], rows, right="BYTES OBJECTS")
    total = f"{output.size(freed.held.stored_bytes)} in {freed.held.objects} objects"
    which = f"{len(dropped)} snapshots" if len(dropped) > 1 else f"snapshot {output.printable(reference(dropped[0]))}"
    line = f"all snapshots hold {total}" if is_all else f"dropping {which} frees {total}"
    (output.remark if by_path else click.echo)(line)
    return None


def _names(snapshot: SnapshotRecord) -> dict[str, object]:
    branch = {"branch": snapshot.branch} if snapshot.branch else {}
    return output.encodable({"number": snapshot.number, **branch, "name": snapshot.name})  # type: ignore[no-any-return]


COMMANDS = (du,)
