"""The commands of the pushing side: push, agent, status, and fetch for what object stores hold."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime
from typing import Any

import click
import msgspec
import sdnotify

from replicator import logs
from replicator.agent import Agent, VolumeAgent
from replicator.agent_metrics import AgentMetrics, served
from replicator.fetch import fetch
from replicator.targets.choose import make_target
from replicator.targets.objects import ObjectStoreTarget
from snapfs.blocks import Disk
from snapfs.config import TargetSettings, target_name
from snapfs.errors import EXIT_CORRUPT, UserError
from snapfs.store import replicas
from snapfs.store.keys import read_owners_key
from snapfs.store.replicas import Replication, TargetFacts
from snapfs.volume import Volume

log_options = (
    click.option("--log-format", type=click.Choice(logs.FORMATS), default="auto", help="text, or JSON lines."),
    click.option("--verbose", is_flag=True, help="Log more."),
)


def with_logs(command: Any) -> Any:
    for option in log_options:
        command = option(command)
    return command


@click.command("push", short_help="Bring the targets of a volume up to date.")
@click.argument("volume", type=click.Path(file_okay=False))
@click.option("--once", is_flag=True, help="End when every target has everything. Default: go on as it changes.")
@with_logs
def push(volume: str, once: bool, log_format: str, verbose: bool) -> None:
    """Push the snapshots of VOLUME to the targets in its volume.toml ([[replication.target]]).

    What an interrupted push has sent is not sent again. For all volumes of a host, and for metrics: `agent`.
    """
    logs.set_up(log_format, verbose)
    _check_has_targets(volume)
    if not once:
        return _until_stopped(_agent([volume], None))
    return _until_stopped(VolumeAgent(os.path.abspath(volume)).run_once())


@click.command("agent", short_help="Push all volumes of this host, for ever.")
@click.argument("volumes", nargs=-1, required=True, type=click.Path(file_okay=False))
@click.option(
    "--listen", default="127.0.0.1:8701", show_default=True, metavar="HOST:PORT",
    help="Where to serve /metrics, /healthz and /readyz; `off` for nowhere.",
)  # fmt: skip
@with_logs
def agent(volumes: tuple[str, ...], listen: str, log_format: str, verbose: bool) -> None:
    """Push the snapshots of the VOLUMES to their targets as they are made. One agent a host is enough.

    A volume may appear later, and its settings may change at any time. SIGTERM ends the agent; nothing is lost by
    killing it.
    """
    logs.set_up(log_format, verbose)
    _until_stopped(_agent(list(volumes), None if listen == "off" else listen))


@click.command("status", short_help="Say how far the targets of a volume are.")
@click.argument("volumes", nargs=-1, required=True, type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Facts as JSON; ignore fields you do not know.")
def status(volumes: tuple[str, ...], as_json: bool) -> None:
    """Say of each target of the VOLUMES: its newest snapshot, how far behind it is, the link, the last error."""
    found = [_status_of(os.path.abspath(path)) for path in volumes]
    if as_json:
        return click.echo(msgspec.json.format(msgspec.json.encode({"volumes": found}), indent=2))
    for facts in found:
        _print_status(facts)
    return None


@click.command("fetch", short_help="Bring a history back from an object store.")
@click.argument("url")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--token-file", default="", help="The key's id and secret, on two lines. Default: from the environment.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="As `options` of a target's settings.")
@click.option("--key-file", type=click.Path(dir_okay=False), help="The key of a volume that is encrypted there.")
@click.option("--key-command", metavar="COMMAND", help="What prints that key.")
@click.option("--json", "as_json", is_flag=True, help="Facts as JSON; ignore fields you do not know.")
def fetch_(
    url: str,
    folder: str,
    token_file: str,
    options: tuple[str, ...],
    key_file: str | None,
    key_command: str | None,
    as_json: bool,
) -> None:
    """Bring everything at URL (s3://, gs://, az://) into FOLDER, as a volume that snapfs lists, restores and mounts.

    An interrupted fetch goes on where it was; a later one brings what is new. The exit code is 5 if something was
    damaged there.
    """
    settings = TargetSettings(url, token_file=token_file, options=dict(map(_name_and_value, options)))
    target = make_target(settings)
    if not isinstance(target, ObjectStoreTarget):
        raise UserError(f"{url} is no object store: a folder or a mirror is read by snapfs itself")
    owner = read_owners_key(key_file, key_command) if key_file or key_command else None
    try:
        found = asyncio.run(fetch(target, os.path.abspath(folder), Disk(), owner=owner))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    else:
        click.echo(f"{found.snapshots} snapshots, {found.new} of them new, {found.fetched_bytes:,} bytes fetched")
    for line in (*found.damaged, *(f"left out snapshot {number}: {why}" for number, why in found.incomplete.items())):
        click.echo(f"snapfs-replicator: {line}", err=True)
    if found.damaged or found.incomplete:
        raise click.exceptions.Exit(EXIT_CORRUPT)


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text}: write NAME=VALUE")
    return name, value


COMMANDS = (push, agent, status, fetch_)


# -- running


def _check_has_targets(path: str) -> None:
    volume = Volume.open(path, Disk())
    if not volume.config.replication.target:
        raise UserError(f"{volume.toml_path} names no target: add a [[replication.target]] with a url")


async def _agent(paths: list[str], listen: str | None) -> None:
    metrics = AgentMetrics()
    made = Agent(paths, metrics.counters)
    metrics.agent = made
    async with contextlib.AsyncExitStack() as stack:
        if listen is not None:
            port = await stack.enter_async_context(served(made, metrics, listen))
            click.echo(f"snapfs-replicator: metrics at http://{listen.rpartition(':')[0]}:{port}/metrics", err=True)
        await stack.enter_async_context(_told_to_systemd(made))
        await made.run()


@contextlib.asynccontextmanager
async def _told_to_systemd(agent_: Agent) -> AsyncIterator[None]:
    """READY=1, a status line, and the watchdog's beat, where systemd listens."""
    if "NOTIFY_SOCKET" not in os.environ:
        yield
        return
    notifier = sdnotify.SystemdNotifier()
    notifier.notify("READY=1")

    async def beat() -> None:
        while True:
            why = agent_.why_not_ready()
            notifier.notify(f"WATCHDOG=1\nSTATUS={why or 'replicating'}")
            await asyncio.sleep(5)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        notifier.notify("STOPPING=1")


def _until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or SIGTERM or SIGINT comes. Raises the first failure, plainly."""

    async def run() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# -- telling


def _status_of(path: str) -> dict[str, Any]:
    volume = Volume.open(path, Disk())
    now_ns = time.time_ns()
    found = replicas.read(replicas.path_of(path), volume.volume_id)
    return {
        "volume": path,
        "mode": volume.config.replication.mode,
        "running": found is not None and found.is_fresh(now_ns),
        "pid": found.pid if found else None,
        "written_ns": found.written_ns if found else None,
        "generation": volume.generation,
        "targets": [_target_facts(name, found, now_ns) for name in map(target_name, volume.config.replication.target)],
    }


def _target_facts(name: str, found: Replication | None, now_ns: int) -> dict[str, Any]:
    known = next((target for target in found.targets if target.name == name), None) if found else None
    facts: dict[str, Any] = msgspec.to_builtins(known or TargetFacts(name, "", "unknown"))
    cut_ns = facts["newest_cut_ns"]
    return {**facts, "newest_age_s": None if cut_ns is None else round((now_ns - cut_ns) / 1e9, 3)}


def _print_status(facts: dict[str, Any]) -> None:
    written = "" if facts["written_ns"] is None else f" since {_utc(facts['written_ns'])}"
    running = f"process {facts['pid']}" if facts["running"] else f"no agent{written}"
    click.echo(f"{facts['volume']}  mode {facts['mode']}, generation {facts['generation']}, {running}")
    for target in facts["targets"]:
        newest = "nothing"
        if target["newest"] is not None:
            newest = f"snapshot {target['newest']}, {target['newest_age_s']:.1f} s old"
        lag = "up to date"
        if target["lag_s"]:
            lag = f"{target['lag_s']:.1f} s and {target['behind_bytes']:,} bytes behind"
        rate = f", {target['bytes_per_s']:,} bytes/s" if target["bytes_per_s"] else ""
        click.echo(f"  {target['name']:<20} {target['link']:<11} {newest}; {lag}{rate}; {target['retries']} retries")
        if target["snapshots"]:
            stored = "" if target["stored_bytes"] is None else f", {target['stored_bytes']:,} bytes"
            click.echo(f"    {target['snapshots']} snapshots there{stored}")
        if target["sending"]:
            done, planned = target["sending"]["done_bytes"], target["sending"]["planned_bytes"]
            click.echo(f"    sending {target['sending']['snapshot']}: {done:,} of {planned:,} bytes")
        if target["last_error"]:
            click.echo(f"    last error {_utc(target['last_error']['time_ns'])}: {target['last_error']['message']}")


def _utc(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
