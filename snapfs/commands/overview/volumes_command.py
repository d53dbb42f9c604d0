"""The command `volumes`: every volume of this host on one page, and an exit code for monitors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from snapfs.base.errors import EXIT_ATTENTION
from snapfs.commands.overview.known_volumes import known_volumes
from snapfs.commands.overview.volume_facts import age, look_at, volume_of
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import mount_entries
from snapfs.commands.support.output import json_option

_HEADS = ("VOLUME", "STATE", "NEWEST", "REPLICATED", "OBJECTIVES", "STORE", "FREE")


@click.command("volumes", short_help="Show all volumes of this host.")
@click.argument("places", metavar="[PLACE...]", nargs=-1, shell_complete=folders)
@json_option
def volumes(places: tuple[str, ...], as_json: bool) -> None:
    """Show every volume of this host: mounted or not, its newest snapshot, the newest that is replicated, objectives,
    space, and what is wrong. Or only the volumes of the PLACES.

    Known are those that are mounted, those that /etc/snapfs/*.env and /etc/fstab name, and the forks beside them. The
    exit code is 8 if something is wrong with one.
    """
    show_overview(places, as_json=as_json)


def show_overview(places: Sequence[str] = (), *, as_json: bool) -> None:
    """Print it; ends the process with EXIT_ATTENTION if something is wrong. UserError if a place is none."""
    named = [volume_of(place) for place in places] if places else known_volumes(mount_entries())
    found = look_at(named)
    if as_json:
        output.emit_json({"ok": all(each["ok"] for each in found), "volumes": found})
    elif not found:
        output.remark("this host has no volume: none is mounted, and /etc/snapfs/*.env and /etc/fstab name none")
    else:
        output.table(_HEADS, [_row(each) for each in found], right="STORE FREE")
        for line in _findings(found):
            click.echo(line)
    if not all(each["ok"] for each in found):
        sys.exit(EXIT_ATTENTION)


def _row(facts: dict[str, Any]) -> tuple[str, ...]:
    space = facts["space"]
    return (
        output.printable(facts["volume"]),
        _state(facts),
        age(facts["newest"]),
        age(facts["replicated"]) if facts["targets"] else "no target",
        _objectives(facts["objectives"]),
        output.size(space["store_bytes"]) if space else "-",
        f"{space['available_bytes'] / space['size_bytes']:.0%}" if space and space["size_bytes"] else "-",
    )


def _state(facts: dict[str, Any]) -> str:
    if facts["fenced"]:
        return "FENCED"
    state = f"at {output.printable(facts['mountpoint'])}" if facts["state"] == "mounted" else str(facts["state"])
    return f"{state}, fork of {fork_words(facts['fork'])}" if facts["fork"] else state


def fork_words(fork: Mapping[str, Any]) -> str:
    """Of what it is a fork, for people."""
    named = f" ({output.printable(fork['name'])})" if fork["name"] else ""
    return f"{output.printable(fork['origin'])}, snapshot {fork['snapshot']}{named}"


def _objectives(objectives: dict[str, Any] | None) -> str:
    if objectives is None or objectives["met"] is None:
        return "-"
    return "met" if objectives["met"] else "NOT MET"


def _findings(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    for facts in found:
        for line in facts["problems"]:
            yield f"{output.printable(facts['volume'])}: {output.printable(line)}"


COMMANDS = (volumes,)
