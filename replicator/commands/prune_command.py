"""`prune`: what the rules keep at a target, and the drop of the rest, on the target's side.

PLACE is as in target_commands.py; or, with --target, a volume whose settings name the target and its rules.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from replicator.commands.command_options import json_option, kept_reason, print_json, utc
from replicator.commands.target_commands import place_options, settings_of
from replicator.targets.mirror_target import HttpTarget
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target_factory import make_target
from replicator.volumes.mirror_volume import MirrorVolume
from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import EXIT_BUSY, UserError
from snapfs.base.settings import config, retention
from snapfs.base.settings.replication_settings import TargetSettings, target_name
from snapfs.base.settings.retention import Verdict
from snapfs.base.settings.retention_settings import RetentionSettings
from snapfs.base.volumes.volume import Volume
from snapfs.store.log.holds import PERSON_PREFIX, Holds
from snapfs.store.log.locks import LockedSnapshot
from snapfs.store.log.snapshot_records import SnapshotRecord

_HELD = "it is held there"


@dataclass(slots=True)
class There:
    """What a target has, and what it would not let go. Times are of its clock, ns since 1970."""

    records: list[SnapshotRecord]
    protected: dict[SnapshotNumber, str] = field(default_factory=dict)
    locked: dict[SnapshotNumber, int] = field(default_factory=dict)
    """Until when its lock keeps which."""


@click.command("prune", short_help="Drop what no rule keeps at a target.")
@place_options
@click.option("--target", "name", metavar="NAME", help="PLACE is a volume: prune this target of it, by its rules.")
@click.option("--rule", "rules", multiple=True, metavar="RULE=VALUE", help="last=20, within=2h, daily=7...")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would be dropped, and drop nothing.")
@json_option
def prune(name: str | None, rules: tuple[str, ...], dry_run: bool, as_json: bool, **place: Any) -> None:
    """Show each snapshot at PLACE with the rule that keeps it, and drop those that none keeps, there only.

    The rules are given with --rule, or with --target are those that the volume's settings have for that target. What is
    locked stays, and is shown with the time until when.
    """
    held: dict[SnapshotNumber, str] = {}
    if name is None:
        settings, given = settings_of(**place), RetentionSettings()
    else:
        settings, held = _target_of(place["place"], name)
        given = settings.retention
    wanted = _with_rules(given, rules)
    there, found, kept = asyncio.run(_pruned(settings, wanted, held, dry_run))
    _show(there, found, kept, wanted, dry_run=dry_run, as_json=as_json)
    if kept:
        raise click.exceptions.Exit(EXIT_BUSY)


def _target_of(volume_path: str, name: str) -> tuple[TargetSettings, dict[SnapshotNumber, str]]:
    """The target's settings, and what people hold of the volume here. Raises UserError."""
    volume = Volume.open(volume_path, Disk())
    replication = volume.config.replication
    found = [each for each in replication.target if target_name(each) == name]
    if not found:
        names = ", ".join(map(target_name, replication.target)) or "none"
        raise UserError(f"{volume.toml_path} names no target {name} (it names: {names})")
    if replication.encryption.is_on:
        raise UserError(f"{name} has ciphertext: the agent, which has the key, prunes it by its rules")
    holds = [hold for hold in Holds(volume.store_dir, Disk()).all() if hold.holder.startswith(PERSON_PREFIX)]
    return found[0], {number: f"held: {hold.why}" for hold in holds for number in hold.snapshots}


def _with_rules(given: RetentionSettings, rules: Sequence[str]) -> RetentionSettings:
    """Raises UserError for what is no rule, and where there is none at all."""
    texts = {}
    for text in rules:
        rule, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text}: write RULE=VALUE, such as last=20")
        texts[f"retention.{rule.removeprefix('retention.')}"] = value
    wanted = config.override(config.Config(retention=given), texts).retention
    if not wanted.is_on:
        raise UserError("there is no rule: give some (last=20, daily=7...), or name a target that has them")
    return wanted


async def _pruned(
    settings: TargetSettings, rules: RetentionSettings, held: dict[SnapshotNumber, str], dry_run: bool
) -> tuple[There, list[Verdict], Sequence[LockedSnapshot]]:
    """What was there, the verdicts, and what turned out to stay when it was dropped."""
    if settings.url.startswith("file://"):
        return await asyncio.to_thread(_prune_folder, settings.url.removeprefix("file://"), rules, held, dry_run)
    target = make_target(settings)
    try:
        if isinstance(target, HttpTarget):
            return await _prune_mirror(target, rules, held, dry_run)
        assert isinstance(target, ObjectStoreTarget)
        return await _prune_bucket(target, rules, held, dry_run)
    finally:
        await target.close()


def _prune_folder(
    folder: str, rules: RetentionSettings, held: dict[SnapshotNumber, str], dry_run: bool
) -> tuple[There, list[Verdict], Sequence[LockedSnapshot]]:
    volume = MirrorVolume.open(folder, Disk())
    try:
        kept, lock_ns = volume.retention.holds.held(), int(volume.retention.lock_s * 1e9)
        there = There(volume.repository.snapshots(), dict.fromkeys(kept, _HELD) | held)
        if lock_ns:
            received = volume.receiver.received_ns
            there.locked = {each.number: received.get(each.number, time.time_ns()) + lock_ns for each in there.records}
        found = _judge(there, rules)
        gone = [int(number) for number in retention.going(found)]
        why = retention.drop_reason(rules)
        return there, found, [] if dry_run or not gone else volume.prune(gone, "snapfs-replicator prune", why)
    finally:
        volume.close()


async def _prune_mirror(
    target: HttpTarget, rules: RetentionSettings, held: dict[SnapshotNumber, str], dry_run: bool
) -> tuple[There, list[Verdict], Sequence[LockedSnapshot]]:
    listed, lock_s, kept = await target.received()
    there = There([each.decoded() for each in listed], dict.fromkeys(kept, _HELD) | held)
    if lock_s:
        received = {SnapshotNumber(each.record["number"]): each.received_ns or time.time_ns() for each in listed}
        there.locked = {number: at_ns + int(lock_s * 1e9) for number, at_ns in received.items()}
    found = _judge(there, rules)
    gone = retention.going(found)
    return there, found, [] if dry_run or not gone else await target.prune(gone, retention.drop_reason(rules))


async def _prune_bucket(
    target: ObjectStoreTarget, rules: RetentionSettings, held: dict[SnapshotNumber, str], dry_run: bool
) -> tuple[There, list[Verdict], Sequence[LockedSnapshot]]:
    state = await target.open(await target.identify())
    there = There(list(state.snapshots), dict.fromkeys(state.held, _HELD) | held)
    there.locked = {each.number: each.until_ns for each in await target.locked([each.number for each in there.records])}
    found = _judge(there, rules)
    gone = retention.going(found)
    if dry_run or not gone:
        return there, found, []
    await target.claim(state.generation, state.writer_id)  # as it is: its writer goes on
    return there, found, await target.drop(gone, retention.drop_reason(rules))


def _judge(there: There, rules: RetentionSettings) -> list[Verdict]:
    """Raises UserError where the names are not to be seen: a name keeps a snapshot."""
    if any(each.ciphertext for each in there.records):
        raise UserError("what is there is encrypted: the agent of its volume, which has the key, prunes it")
    now_ns = time.time_ns()
    if there.records:
        there.protected.setdefault(max(each.number for each in there.records), "it is the newest there")
    until = {number: until_ns for number, until_ns in there.locked.items() if until_ns > now_ns}
    return retention.judge(there.records, rules, now_ns, there.protected, lambda number: until.get(number, 0))


def _show(
    there: There, found: list[Verdict], kept: Sequence[LockedSnapshot], rules: RetentionSettings, *, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    staying = {each.number for each in kept}
    if as_json:
        shown = [
            {"name": record.name, "cut_time_ns": record.cut_time_ns, "state": record.state} | retention.facts(verdict)
            for record, verdict in zip(there.records, found, strict=True)
        ]
        gone = [number for number in retention.going(found) if number not in staying]
        rules_line = retention.rules_text(rules)
        return print_json({"rules": rules_line, "dry_run": dry_run, "dropped": gone, "snapshots": shown})
    for record, verdict in zip(there.records, found, strict=True):
        goes = "would drop" if dry_run else "drop"
        action = goes if verdict.goes and verdict.number not in staying else "keep"
        click.echo(f"{record.number:>8}  {utc(record.cut_time_ns)}  {action:<10}  {retention.reason(verdict, utc)}")
    for each in kept:
        why = kept_reason(each.reason, each.until_ns)
        click.echo(f"snapfs-replicator: snapshot {each.number} stays: {why}", err=True)
    return None


COMMANDS = (prune,)
