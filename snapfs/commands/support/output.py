"""How facts look: UTC times, sizes, tables and JSON on stdout; remarks and progress on stderr."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import click
import msgspec

from snapfs.base.errors import printable as _printable
from snapfs.commands.support import remarks

if TYPE_CHECKING:
    from snapfs.store.repository.repository import SnapshotRecord

json_option = click.option("--json", "as_json", is_flag=True, help="Facts as JSON; ignore fields you do not know.")
progress_option = click.option(
    "--progress/--no-progress", default=None, help="Show progress on stderr. Default: if stderr is a terminal."
)
Progress = Callable[[int, int], None]
remark, printable = remarks.remark, _printable


def emit_json(facts: Any) -> None:
    """One JSON document, indented, on stdout."""
    click.echo(msgspec.json.format(_encoded(facts), indent=2))


def _encoded(facts: Any) -> bytes:
    try:
        return msgspec.json.encode(facts)
    except UnicodeEncodeError:  # a name or a command that is not UTF-8
        return msgspec.json.encode(encodable(msgspec.to_builtins(facts)))


def encodable(value: Any) -> Any:
    """The same with `?` for what UTF-8 cannot hold: names and commands may be any bytes."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(each) for each in value]
    return value


def emit_json_list(items: Iterable[Any]) -> None:
    """The same document as `emit_json` of a list, written as the items come: for what can be long."""
    before = "["
    for item in items:
        shown = msgspec.json.format(_encoded(item), indent=2).decode()
        click.echo(f"{before}\n{textwrap.indent(shown, '  ')}", nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def emit_line(facts: Any) -> None:
    """One JSON document on a line of its own: the form of what can be long."""
    click.echo(msgspec.json.encode(facts))


def utc(time_ns: int) -> str:
    """ISO 8601, to the millisecond: 2026-11-21T02:34:05.123Z"""
    moment = datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{time_ns // 10**6 % 1000:03d}Z"


def size(count: float) -> str:
    """`count` bytes for people: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def seconds(span: float) -> str:
    """A time span for people, from microseconds to days."""
    if span < 1:
        return f"{span * 1000:.1f} ms"
    if span < 120:
        return f"{span:.1f} s"
    minutes, rest = divmod(round(span), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def path_facts(path: bytes) -> dict[str, str]:
    """A path for JSON. What is not UTF-8 has its exact bytes in `path_hex`."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_hex": path.hex()}


def record_facts(record: SnapshotRecord) -> dict[str, Any]:
    """A snapshot for JSON. Times in both forms, sizes in bytes; `cut`: how it was made, if that was not as usual."""
    from snapfs.store.log.snapshot_records import CutFacts, cut_fields

    branch = {"branch": record.branch} if record.branch else {}  # only of a branch
    return {
        "number": record.number,
        **branch,
        "name": None if record.name is None else record.name.encode(errors="surrogateescape").decode(errors="replace"),
        "state": record.state,
        "trigger": record.trigger,
        "cut_time": utc(record.cut_time_ns),
        "cut_time_ns": record.cut_time_ns,
        "seal_time_ns": record.seal_time_ns,
        "generation": record.generation,
        "parent": record.parent,
        "root": {
            "number": record.root.number,
            "content_hash": record.root.content_hash.hex(),
            "proof": record.root.content_hash.hex(),  # the name until 0.1; goes with 0.3
        },
        "stats": record.stats,
    } | ({"cut": cut_fields(record.cut)} if record.cut != CutFacts() else {})


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Columns wide enough for what is in them; those whose head is a word of `right` are set flush right."""
    streamed_table(heads, lambda: rows, right)


def streamed_table(heads: Sequence[str], rows: Callable[[], Iterable[Sequence[str]]], right: str = "") -> None:
    """`table` of rows that are made twice, for the widths and to be printed, so that they need not be kept."""
    widths = [len(head) for head in heads]
    for row in rows():
        widths = [max(width, len(cell)) for width, cell in zip(widths, row, strict=True)]
    for row in chain((heads,), rows()):
        cells = [
            cell.rjust(width) if head in right.split() else cell.ljust(width)
            for head, cell, width in zip(heads, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


@contextlib.contextmanager
def progress(what: str, shown: bool | None, unit: str = "B") -> Iterator[Progress]:
    """A bar with rate and time left on stderr, for work that is reported as (done, total). Quick work shows none."""
    from tqdm import tqdm

    visible = sys.stderr.isatty() if shown is None else shown
    bar = tqdm(
        desc=what, unit=unit, unit_scale=True, unit_divisor=1024, file=sys.stderr, disable=not visible,
        delay=0 if shown else 1, dynamic_ncols=True, leave=bool(shown),
    )  # fmt: skip

    def advance(done: int, total: int) -> None:
        bar.total = total or None
        bar.update(done - bar.n)

    with bar:
        yield advance
        bar.refresh()


def now_ns() -> int:
    return time.time_ns()
