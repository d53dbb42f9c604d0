"""The commands of the pushing side: push and agent, and fetch for what object stores hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import click

from replicator.agent.agent import Agent, VolumeAgent
from replicator.agent.agent_metrics import DEFAULT_LISTEN, AgentMetrics, served
from replicator.commands.command_options import json_option, name_and_value, print_json, with_logs
from replicator.commands.fetch import fetch
from replicator.commands.target_commands import mark_new
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.target_factory import make_target
from snapfs.base import systemd
from snapfs.base.blocks import Disk
from snapfs.base.errors import EXIT_CORRUPT, UserError
from snapfs.base.logs import log_output
from snapfs.base.settings.replication_settings import TargetSettings
from snapfs.base.volumes.volume import Volume
from snapfs.store.crypto.keys import read_owners_key

log = logging.getLogger(__name__)


@click.command("push", short_help="Bring the targets of a volume up to date.")
@click.argument("volume", type=click.Path(file_okay=False))
@click.option("--once", is_flag=True, help="End when every target has everything. Default: go on as it changes.")
@click.option("--new", is_flag=True, help="Targets that were never pushed to are new: as `target init` before it.")
@with_logs
def push(volume: str, once: bool, new: bool, log_format: str, verbose: bool) -> None:
    """Push the snapshots of VOLUME to the targets in its volume.toml ([[replication.target]]).

    What an interrupted push has sent is not sent again. For all volumes of a host, and for metrics: `agent`.
    """
    log_output.set_up(log_format, verbose)
    _check_has_targets(volume)
    if new:
        mark_new(os.path.abspath(volume), ())
    if not once:
        return _until_stopped(_agent([volume], None))
    return _until_stopped(VolumeAgent(os.path.abspath(volume)).run_once())


@click.command("agent", short_help="Push all volumes of this host, for ever.")
@click.argument("volumes", nargs=-1, required=True, type=click.Path(file_okay=False))
@click.option(
    "--listen", default=DEFAULT_LISTEN, show_default=True, metavar="HOST:PORT",
    help="Where to serve /metrics, /healthz and /readyz; `off` for nowhere.",
)  # fmt: skip
@with_logs
def agent(volumes: tuple[str, ...], listen: str, log_format: str, verbose: bool) -> None:
    """Push the snapshots of the VOLUMES to their targets as they are made. One agent a host is enough.

    A volume may appear later, and its settings may change at any time. SIGTERM ends the agent; nothing is lost by
    killing it.
    """
    log_output.set_up(log_format, verbose)
    _until_stopped(_agent(list(volumes), None if listen == "off" else listen))


@click.command("fetch", short_help="Bring a history back from an object store.")
@click.argument("url")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--token-file", default="", help="The key's id and secret, on two lines. Default: from the environment.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="As `options` of a target's settings.")
@click.option("--key-file", type=click.Path(dir_okay=False), help="The key of a volume that is encrypted there.")
@click.option("--key-command", metavar="COMMAND", help="What prints that key.")
@json_option
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
    settings = TargetSettings(url, token_file=token_file, options=dict(map(name_and_value, options)))
    target = make_target(settings)
    if not isinstance(target, ObjectStoreTarget):
        raise UserError(f"{url} is no object store: `snapfs fetch` brings the history of a mirror or a folder here")
    owner = read_owners_key(key_file, key_command) if key_file or key_command else None
    try:
        found = asyncio.run(fetch(target, os.path.abspath(folder), Disk(), owner=owner))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found.snapshots} snapshots, {found.new} of them new, {found.fetched_bytes:,} bytes fetched")
    for line in (*found.damaged, *(f"left out snapshot {number}: {why}" for number, why in found.incomplete.items())):
        click.echo(f"snapfs-replicator: {line}", err=True)
    if found.damaged or found.incomplete:
        raise click.exceptions.Exit(EXIT_CORRUPT)


COMMANDS = (push, agent, fetch_)


# -- running


def _check_has_targets(path: str) -> None:
    volume = Volume.open(path, Disk())
    if not volume.config.replication.target:
        raise UserError(f"{volume.toml_path} names no target: add a [[replication.target]] with a url")


def _remark(line: str) -> None:
    """A line for people, or of the log where that is JSON."""
    if log_output.is_json():
        log.info("%s", line)
    else:
        click.echo(f"snapfs-replicator: {line}", err=True)


async def _agent(paths: list[str], listen: str | None) -> None:
    metrics = AgentMetrics()
    made = Agent(paths, metrics.counters)
    metrics.show(made)
    async with contextlib.AsyncExitStack() as stack:
        if listen is not None:
            port = await stack.enter_async_context(served(made, metrics, listen))
            _remark(f"metrics at http://{listen.rpartition(':')[0]}:{port}/metrics")
        await stack.enter_async_context(_notified(made))
        await made.run()


@contextlib.asynccontextmanager
async def _notified(agent_: Agent) -> AsyncIterator[None]:
    """READY=1, a status line, and the watchdog's beat, where systemd listens."""
    if "NOTIFY_SOCKET" not in os.environ:
        yield
        return
    systemd.notify("READY=1")

    async def beat() -> None:
        while True:
            why = agent_.why_not_ready()
            systemd.notify(f"WATCHDOG=1\nSTATUS={why or 'replicating'}")
            await asyncio.sleep(5)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        systemd.notify("STOPPING=1")


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
