"""The command `audit`: who did what to a volume, and whether the record of it is what it was."""

from __future__ import annotations

import datetime
import pwd
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

import click

from snapfs.base.errors import UserError
from snapfs.base.settings.units import parse_seconds
from snapfs.commands.support import output
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, opened, with_access
from snapfs.store.log import snapshot_records
from snapfs.store.repository.repository import Event, Repository, SnapshotRecord

_HIDDEN: Final = frozenset({
    "by", "why", "holder", "root", "stats", "last_number", "seal_time_ns", "cut_time_ns", "parent", "log_head",
    "trigger", "record", "sealed", "signature", "head", "arguments", "flags", "options", "command", "number", "name",
    "not_asked", "cut",
})  # fmt: skip


@click.command("audit", short_help="Show who did what, and prove that the record is whole.")
@click.argument("place", shell_complete=folders)
@click.option("--since", metavar="TIME", help="Only what came after: 2026-11-29, 2026-11-29T21:30:00Z, or 2h, 3d ago.")
@click.option("--check", is_flag=True, help="Prove the chain, and compare it with what each target witnessed.")
@click.option("--public-key", type=click.Path(dir_okay=False), help="Of checkpoints. Default: that of audit.sign_key.")
@with_access
@json_option
def audit(place: str, since: str | None, check: bool, public_key: str | None, given: Given, as_json: bool) -> None:
    """Print every act on the volume of PLACE, or on what a target's URL keeps of it, one a line: when, what, by whom.

    With --check print instead whether the record is what it was: exit code 5 if anything contradicts it, 8
    if a target could not be asked, or does not know of a takeover that the record has.
    """
    if check:
        return _print_proof(place, public_key, as_json)
    if public_key:
        raise click.UsageError("--public-key belongs to --check.")
    from_ns = since_ns(since, output.now_ns()) if since else 0
    with opened(place, given) as repository:
        for event in _events(place, repository):
            if event.time_ns >= from_ns:
                _print_act(event, as_json)
    return None


def _events(place: str, repository: Repository) -> Iterable[Event]:
    """The log; of a target far away, which keeps its own to itself, the snapshots that it has."""
    if "://" not in place:
        return repository.events()
    records = chain(repository.catalog.pages(), repository.catalog.branches())
    return (Event("snapshot", record.seal_time_ns, _fields(record)) for record in records)


def _fields(record: SnapshotRecord) -> dict[str, Any]:
    branch = {"branch": record.branch} if record.branch else {}
    return {**snapshot_records.to_fields(record), **branch, "state": record.state}


def since_ns(text: str, now_ns: int) -> int:
    """The time that --since names. Pure. UserError if it names none."""
    if re.fullmatch(r"\d[\d.]*\s*(ms|[smhd]).*", text):
        try:
            return now_ns - round(parse_seconds(text.removesuffix("ago").strip()) * 1e9)
        except ValueError as error:
            raise UserError(f"--since {error}") from None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"--since {text}: write 2026-11-29, 2026-11-29T21:30:00Z, or a time span as in 2h") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1e9)


def _print_act(event: Event, as_json: bool) -> None:
    if as_json:
        facts = {"kind": event.kind, "act": act_of(event), "by": asked(event), "time": output.utc(event.time_ns)}
        return output.emit_line(facts | {"time_ns": event.time_ns, "fields": event.fields})
    words = " ".join(output.printable(word) for word in _words(event))
    click.echo(
        f"{output.utc(event.time_ns)}  {act_of(event):<12} {output.printable(asked(event)):<16} {words}".rstrip()
    )
    return None


_ACTS: Final = {"snapshot": "seal", "dropped": "drop", "aside": "branch", "claimed": "claim", "drilled": "drill"}


def act_of(event: Event) -> str:
    """What was done, in a word."""
    return str(event.fields.get("command", "command")) if event.kind == "command" else _ACTS.get(event.kind, event.kind)


def asked(event: Event) -> str:
    """Who asked for it, as far as the record says: a user, a rule, a writer, a token."""
    by = event.fields.get("by")
    if isinstance(by, Mapping):
        return _user(by.get("uid"))
    if isinstance(by, str) and by:
        return by
    return str(event.fields.get("holder") or event.fields.get("trigger") or "-")


def _user(uid: object) -> str:
    if not isinstance(uid, int):
        return "-"
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _words(event: Event) -> Iterator[str]:
    fields = event.fields
    number = fields.get("number", fields.get("snapshot"))
    if number is not None:
        yield f"snapshot {number}"
    if fields.get("name"):
        yield str(fields["name"])
    if fields.get("by") and fields.get("holder"):
        yield f"holder={fields['holder']}"
    if event.kind == "snapshot":
        yield f"cut {output.utc(fields['cut_time_ns'])}"
    yield from (str(word) for word in (*fields.get("arguments", ()), *fields.get("flags", ())))
    yield from (f"{key}={value}" for key, value in fields.get("options", {}).items())
    for key, value in fields.items():
        if key not in _HIDDEN and key != "snapshot" and not isinstance(value, dict | list) and value is not None:
            yield f"{key}={value}"
    if fields.get("why"):
        yield f"({fields['why']})"


def _print_proof(place: str, public_key: str | None, as_json: bool) -> None:
    if "://" in place:
        raise click.UsageError("--check is for a volume on this host: it asks the volume's targets by itself.")
    from snapfs.commands.overview.audit_check import prove

    proof = prove(locate(place).volume(), public_key)
    if as_json:
        output.emit_json(proof.facts())
    else:
        click.echo(f"chain        {proof.lines} lines")
        for name, number in proof.through.items():
            click.echo(
                f"witnessed    by {name} up to snapshot {number}" if number else f"witnessed    not by {name} yet"
            )
        if proof.signed_through is not None and proof.signed_ns is not None:
            click.echo(f"signed       up to line {proof.signed_through}, {output.utc(proof.signed_ns)}")
        for line in proof.unknown:
            click.echo(f"not asked    {output.printable(line)}")
        for line in proof.unproven:
            click.echo(f"not proven   {output.printable(line)}")
        for line in proof.findings:
            click.echo(f"WRONG        {output.printable(line)}")
    if proof.exit_code:
        sys.exit(proof.exit_code)


COMMANDS = (audit,)
