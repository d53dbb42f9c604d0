"""`status --watch`: the state of a mounted volume, live, until it is interrupted or the mount is gone.

On a terminal one table is drawn anew; elsewhere each sample is a block of lines, or with --json a line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from snapfs.base.errors import UserError
from snapfs.commands.overview.watch_view import Sample, counts_of, lines, rates, table
from snapfs.commands.support import output
from snapfs.commands.support.locate import VolumeLocation, locate


def watch(place: str, interval_s: float, *, as_json: bool) -> None:
    """Show the volume of `place` until an interrupt. UserError if it is not mounted, DaemonDiedError if it ends."""
    where = locate(place)
    if where.mountpoint is None:
        raise UserError(f"{where.volume_path} is not mounted: --watch shows what a daemon does")
    samples = _samples(where, interval_s)
    if as_json:
        return _each(samples, lambda before, now: output.emit_line(_facts(before, now)))
    if not sys.stdout.isatty():
        return _each(samples, _print_block)
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(highlight=False), auto_refresh=False, screen=False) as live:
        return _each(samples, lambda before, now: live.update(table(before, now), refresh=True))


def _samples(where: VolumeLocation, interval_s: float) -> Iterator[Sample]:
    assert where.mountpoint is not None
    path = os.path.join(where.mountpoint, ".snapfs", "metrics")
    while True:
        status = where.status()
        with open(path, encoding="utf-8") as file:
            counts = counts_of(file.read())
        yield Sample(time.monotonic(), status, counts)
        time.sleep(interval_s)


def _each(samples: Iterator[Sample], show: Callable[[Sample | None, Sample], None]) -> None:
    before: Sample | None = None
    for now in samples:
        show(before, now)
        before = now


def _facts(before: Sample | None, now: Sample) -> dict[str, Any]:
    return {"rates": rates(before, now), **now.status}


def _print_block(before: Sample | None, now: Sample) -> None:
    for name, value in lines(before, now):
        click.echo(f"{name:<12}{output.printable(value)}")
    click.echo()
    sys.stdout.flush()
