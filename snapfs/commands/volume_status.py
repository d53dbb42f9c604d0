"""The command `status`: what a mounted volume's daemon reports, or what an unmounted volume's folder shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import click

from snapfs.base.errors import SnapfsError
from snapfs.base.settings.units import parse_seconds
from snapfs.base.volumes.fork_file import read_fork
from snapfs.base.volumes.volume_lock import lock_holder
from snapfs.commands.overview.volumes_command import fork_words
from snapfs.commands.support import output
from snapfs.commands.support.bounded_look import WAIT_S, NoAnswerError, look
from snapfs.commands.support.completion import folders
from snapfs.commands.support.locate import VolumeLocation, locate
from snapfs.commands.support.output import json_option
from snapfs.control.mount_status import fork_facts
from snapfs.daemon.supervision.supervisor_status import last_words
from snapfs.store.log.peers import shared_url


@click.command("status", short_help="Show the state of a volume.")
@click.argument("place", required=False, shell_complete=folders)
@click.option("--watch", is_flag=True, help="Show it live, with rates, until interrupted. The volume is mounted.")
@click.option("--interval", metavar="TIME", default="1s", show_default=True, help="Of --watch: from look to look.")
@json_option
def status(place: str | None, watch: bool, interval: str, as_json: bool) -> None:
    """Show the state of the volume of PLACE: mounted or not, its last snapshot, what is dirty, what went wrong.

    Without a PLACE all volumes of this host, as `volumes` does.
    """
    if watch:
        if place is None:
            raise click.UsageError("--watch takes a PLACE.")
        from snapfs.commands.overview import watch as live

        try:
            interval_s = float(parse_seconds(interval))
        except ValueError as error:
            raise click.UsageError(f"--interval: {error}") from None
        return live.watch(place, max(interval_s, 0.05), as_json=as_json)
    if place is None:
        from snapfs.commands.overview.volumes_command import show_overview

        return show_overview(as_json=as_json)
    try:
        facts = look(functools.partial(_status, place))
    except NoAnswerError:
        raise SnapfsError(
            f"{place}: its daemon does not answer within {WAIT_S:.0f} s: daemon.log in its volume may say why, and "
            "`snapfs umount --lazy` takes the mount away"
        ) from None
    if as_json:
        return output.emit_json(facts)
    for key, value in _mounted_lines(facts) if facts["mounted"] else _unmounted_lines(facts):
        click.echo(f"{key:<12}{output.printable(value)}")
    return None


def _status(place: str) -> dict[str, Any]:
    where = locate(place)
    return {"mounted": True, **where.status()} if where.mountpoint else _unmounted_status(where)


def _unmounted_status(where: VolumeLocation) -> dict[str, Any]:
    volume = where.volume()
    with where.repository() as repository:
        records = repository.snapshots()
    died = last_words(volume.path) if where.is_dead else None
    return {
        "mounted": False,
        **({"daemon_died": died} if died else {}),
        "volume": volume.path,
        "id": volume.volume_id,
        "fork": fork_facts(read_fork(volume.path)),
        "generation": volume.generation,
        "held_by": lock_holder(volume.path),
        "snapshots": len(records),
        "last_snapshot": output.record_facts(records[-1]) if records else None,
    }


def _unmounted_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "volume", f"{output.printable(facts['volume'])} ({facts['id']})"
    yield "mounted", f"no; held by {facts['held_by']}" if facts["held_by"] else "no"
    if died := facts.get("daemon_died"):
        yield "died", output.printable(died)
    if fork := facts.get("fork"):
        yield "fork of", fork_words(fork)
    yield "generation", str(facts["generation"])
    yield "snapshots", str(facts["snapshots"])
    if last := facts["last_snapshot"]:
        yield "last", _snapshot_line(last)


def _not_asked_lines(taken: dict[str, Any], facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The targets that the takeover did not query, until they are targets of this volume, too."""
    ours = {shared_url(each["url"]) for each in (facts.get("replication") or {}).get("targets", [])}
    for each in taken.get("not_queried", taken["not_asked"]):
        if each["url"] not in ours:
            called = f"{each['name']} ({each['url']})" if each.get("name") else each["url"]
            why = f": {each['why']}" if each.get("why") else ""
            line = f"{called} was not queried{why}: it may have snapshots after {taken['snapshot']}"
            yield "took over", output.printable(line)


def _mounted_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the daemon reported, for people. A daemon of another version may leave things out."""
    yield "volume", f"{output.printable(facts['volume'])} ({facts['volume_id']})"
    since = output.utc(facts["start_time_ns"])
    yield "mounted", f"at {output.printable(facts['mountpoint'])} by process {facts['pid']} since {since}"
    yield "generation", str(facts["generation"])
    if fenced := facts.get("fenced"):
        can = "nothing can be changed here" if fenced["read_only"] else "what is written here stays here"
        base = f", and went on from snapshot {fenced['went_on_from']}" if fenced.get("went_on_from") else ""
        yield "FENCED", f"{fenced['by_holder']} is the writer (generation {fenced['by_generation']}{base}): {can}"
        nothing = "nothing: all was replicated to where it went on from" if fenced["branch_kept"] else "not kept yet"
        yield "kept as", fenced["branch"] or nothing
    if taken := facts.get("taken_over"):
        yield from _not_asked_lines(taken, facts)
    if fork := facts.get("fork"):
        yield "fork of", fork_words(fork)
    dirty = facts["dirty"]
    yield "dirty", f"{dirty['files']} files, about {output.size(dirty['bytes'])}"
    yield "snapshots", str(facts["snapshots"])
    if last := facts["last_snapshot"]:
        yield "last", f"{_snapshot_line(last)}, {output.seconds(last['age_s'])} old"
    if failing := facts.get("snapshot_failing"):
        yield "NO SNAPSHOT", f"since {output.utc(failing['since_ns'])}: {failing['what']}: {failing['message']}"
    yield from _policy_lines(facts)
    running = facts.get("sealing")
    yield "sealing", _sealing_line(running) if running else (facts.get("busy") or {}).get("what", "-")
    pause = facts.get("cut_pause_s") or {}
    if pause.get("count"):
        times = " ".join(f"{name} {output.seconds(pause[name])}" for name in ("p50", "p99", "max"))
        yield "cut pause", f"{times} of {pause['count']}"
    if absent := (facts.get("hydration") or {}).get("absent_files"):
        yield "absent", f"{absent} files are still read from the store"
    if drill := facts.get("drill"):
        passed = "passed" if drill["passed"] else f"FAILED: {output.printable(drill['why'] or '')}"
        took = f" after {output.seconds(drill['recovery_s'])}" if drill["recovery_s"] is not None else ""
        yield "drill", f"of snapshot {drill['snapshot']}, {output.utc(drill['time_ns'])}: {passed}{took}"
    yield from _target_lines(facts.get("replication") or {})
    error = facts.get("last_error")
    yield "last error", f"{output.utc(error['time_ns'])} {error['what']}: {error['message']}" if error else "-"
    for line in facts.get("recovered", []):
        yield "recovered", output.printable(line)
    for kept in facts.get("stray_files", facts.get("aside", [])):  # a daemon of 0.1 has the old name
        why = "what was lost" if kept["damage"] else "what no inode has"
        yield "aside", f"{why}: {kept['files']} files, {output.size(kept['bytes'])}, in {kept['folder']}"


def _policy_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Which rule decides when the next snapshot is due, and whether the objectives hold."""
    policy, objectives = facts.get("policy") or {}, facts.get("objectives") or {}
    if policy.get("rule", "none") != "none":
        in_s = f", due in {output.seconds(policy['next_s'])}" if policy["next_s"] else ""
        yield "policy", f"{policy['rule']}: {policy['why']}{in_s}"
    if last := policy.get("last"):
        yield "last cut", f"{last['rule']}: {last['why']}"
    if rpo_s := objectives.get("rpo_s"):
        why = f": {output.printable(objectives['rpo_why'])}" if objectives["rpo_why"] else ""
        state = objectives["rpo_state"] if objectives["rpo_state"] == "met" else objectives["rpo_state"].upper()
        yield "rpo", f"{output.seconds(rpo_s)}, {state}, now {output.seconds(objectives['age_s'])}{why}"
        yield "seal share", f"{policy['seal_share']:.1%} of the time, seal.budget {policy['seal_budget']:.0%}"


def _target_lines(replication: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for target in replication.get("targets", []):
        if "state" not in target:  # of a daemon that is older than this
            continue
        missing = target["missing"]
        lacks = f", lacks {missing} snapshots for {output.seconds(target['lag_s'])}" if missing else ""
        why = f" ({output.printable(target['why'])})" if target["why"] and target["state"] != "behind" else ""
        yield "target", f"{target['name']}: {target['state']}{lacks}{why}"


def _snapshot_line(record: dict[str, Any]) -> str:
    name = f" {output.printable(record['name'])}" if record["name"] else ""
    return f"{record['number']}{name} of {output.utc(record['cut_time_ns'])}, {record['state']}"


def _sealing_line(running: dict[str, Any]) -> str:
    done, total = output.size(running["done_bytes"]), output.size(running["total_bytes"])
    return f"{running['phase']}: {done} of {total}, for {output.seconds(running['seconds_s'])}"


COMMANDS = (status,)
