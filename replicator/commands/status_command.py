"""The status command: how far the targets of volumes are, for people and for monitors.

What the agent reports is compared with what the volume itself has (snapfs/store/log/target_standing.py). The exit code
is 0 only if every target is known to have everything, or what it lacks is younger than --max-lag.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import click

from replicator.commands.command_options import Span, json_option, kept_reason, print_json, utc
from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_ATTENTION
from snapfs.base.settings.replication_settings import plain_url, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.log import replica_state
from snapfs.store.log.replica_state import STALE_SECONDS, KeptFacts
from snapfs.store.log.snapshot_records import SnapshotRecord, StoreIdentity
from snapfs.store.log.target_standing import AgentReport, Standing, judge, worst
from snapfs.store.repository.repository import Repository
from snapfs.store.repository.store_folders import is_store


@click.command("status", short_help="Show how far the targets of a volume are.")
@click.argument("volumes", nargs=-1, required=True, type=click.Path(file_okay=False))
@click.option("--max-lag", type=Span(), default="off", show_default=True,
              help="Fine as long as what a target lacks is younger, as in 30s.")  # fmt: skip
@click.option(
    "--max-age", type=Span(), default="10s", show_default=True,
    help="How old the agent's last report may be; above 10s no agent need run (for `push --once`).",
)  # fmt: skip
@json_option
def status(volumes: tuple[str, ...], max_lag: float, max_age: float, as_json: bool) -> None:
    """Show of each target of the VOLUMES its state, its newest snapshot, what it lacks, and the last error.

    What it lacks is what the volume has and the target has not acknowledged, whatever the agent reported last. The exit
    code is 0 if every target of every volume has everything, else 8: so `status` is a check for monitors.
    """
    found = [_status_of(os.path.abspath(path), max_lag, max_age) for path in volumes]
    if as_json:
        listed = [facts | {"targets": [each.as_json() for each in standings]} for facts, standings in found]
        print_json({"volumes": listed})
    else:
        for facts, standings in found:
            _print_status(facts, standings)
    if not all(facts["ok"] for facts, _ in found):
        raise click.exceptions.Exit(EXIT_ATTENTION)


def _status_of(path: str, max_lag_s: float, max_age_s: float) -> tuple[dict[str, Any], list[Standing]]:
    volume = Volume.open(path, Disk())
    settings, now_ns = volume.config.replication, time.time_ns()
    found = replica_state.read_checked(replica_state.path_of(path), volume.volume_id)
    age_s = (now_ns - found.written_ns) / 1e9 if found is not None else None
    report = AgentReport(found, replica_state.agent_lives(path), age_s, max(max_age_s, STALE_SECONDS))
    named = [(target_name(each), plain_url(each.url)) for each in settings.target]
    records = _records(volume)
    standings = judge(named, report, records, now_ns)
    return {
        "volume": path,
        "mode": settings.mode,
        "state": worst(standings),
        "ok": bool(standings) and all(each.is_fine(max_lag_s) for each in standings),
        "why": report.why_not() if standings else "the volume has no [[replication.target]]",
        "running": report.holds and report.lives is not False,
        "pid": found.pid if found else None,
        "written_ns": found.written_ns if found else None,
        "generation": volume.generation,
        "newest": records[-1].number if records else None,
    }, standings


def _records(volume: Volume) -> list[SnapshotRecord]:
    """What the volume has. CorruptionError where its log cannot be read."""
    if not is_store(volume.store_dir):
        return []
    identity = StoreIdentity(volume.volume_id, volume.seed, volume.holds_ciphertext)
    with contextlib.closing(Repository.open(volume.store_dir, identity, Disk(), readonly=True)) as repository:
        return repository.snapshots()


def _print_status(facts: dict[str, Any], standings: list[Standing]) -> None:
    agent = f"process {facts['pid']}" if facts["running"] else facts["why"] or "no agent is running"
    newest = "no snapshot yet" if facts["newest"] is None else f"newest snapshot {facts['newest']}"
    click.echo(f"{facts['volume']}  mode {facts['mode']}, generation {facts['generation']}, {newest}; {agent}")
    for each in standings:
        _print_target(each)


def _print_target(each: Standing) -> None:
    facts = each.facts
    there = "it has nothing" if each.answers else "what it has is not known"
    if each.newest is not None:
        age = "" if each.newest_age_s is None else f", {each.newest_age_s:.1f} s old"
        there = f"it {'has' if each.answers else 'had'} snapshot {each.newest}{age}"
    lacks = "lacks nothing"
    if each.missing:
        lacks = f"lacks {each.missing} snapshots, {each.behind_bytes:,} bytes, for {each.lag_s:.1f} s"
    rate = f", {facts.bytes_per_s:,} bytes/s" if facts.bytes_per_s and each.answers else ""
    click.echo(f"  {each.name:<20} {each.words:<13} {there}; {lacks}{rate}; {facts.retries} retries")
    if each.why and not each.answers:
        click.echo(f"    {each.why}")
    if facts.snapshots:
        stored = "" if facts.stored_bytes is None else f", {facts.stored_bytes:,} bytes"
        when = "there" if each.answers else "there when it last answered"
        click.echo(f"    {facts.snapshots} snapshots {when}{stored}")
    if facts.note:
        click.echo(f"    {facts.note}")
    for kept in facts.kept:
        click.echo(f"    {_kept_words(kept)}")
    if facts.sending and each.answers:
        sending = facts.sending
        click.echo(f"    sending {sending.snapshot}: {sending.done_bytes:,} of {sending.planned_bytes:,} bytes")
    if facts.last_error:
        click.echo(f"    last error {utc(facts.last_error.time_ns)}: {facts.last_error.message}")


def _kept_words(kept: KeptFacts) -> str:
    more = f" and {kept.count - 1} more" if kept.count > 1 else ""
    why = kept_reason(kept.reason, kept.until_ns or 0)
    return f"dropped here and kept there: snapshot {kept.first}{more}: {why}"


COMMANDS = (status,)
