"""Options and types that several commands share, and how facts are printed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from snapfs.base.logs import log_output
from snapfs.base.mirror_access import MirrorAccess
from snapfs.base.settings.units import parse_bytes, parse_seconds
from snapfs.store.log.locks import Stays

json_option = click.option("--json", "as_json", is_flag=True, help="Facts as JSON; ignore fields you do not know.")
_LOG_OPTIONS = (
    click.option(
        "--log-format",
        type=click.Choice(log_output.FORMATS),
        default="auto",
        envvar=log_output.VARIABLE,
        help="text, or JSON lines.",
    ),
    click.option("--verbose", is_flag=True, help="Log more."),
)
_ACCESS_OPTIONS = (
    click.option("--token-file", type=click.Path(dir_okay=False), help="Holds the token; for a URL."),
    click.option("--ca", type=click.Path(dir_okay=False), help="Certificates to trust instead of the system's."),
    click.option("--certificate", type=click.Path(dir_okay=False), help="Our own (PEM), if the mirror requires one."),
    click.option("--certificate-key", "key", type=click.Path(dir_okay=False), help="Its key. Default: in that file."),
)


class ByteSize(click.ParamType):  # type: ignore[type-arg] # generic only in some versions
    """A size such as 64MiB, in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else int(parse_bytes(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Span(click.ParamType):  # type: ignore[type-arg] # generic only in some versions
    """A time such as 14d, in seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(value) if isinstance(value, int | float) else float(parse_seconds(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def with_logs(command: Any) -> Any:
    """Give a command the options of log_output.set_up."""
    for option in reversed(_LOG_OPTIONS):
        command = option(command)
    return command


def with_access(command: Callable[..., Any]) -> Any:
    """Give a command the options of `MirrorAccess`, and call it with one."""

    @functools.wraps(command)
    def called(
        *arguments: Any, token_file: str | None, ca: str | None, certificate: str | None, key: str | None, **more: Any
    ) -> Any:
        return command(*arguments, access=MirrorAccess(token_file, ca, certificate, key), **more)

    wrapped: Any = called
    for option in reversed(_ACCESS_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def name_and_value(text: str) -> tuple[str, str]:
    """Of NAME=VALUE. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text}: write NAME=VALUE")
    return name, value


def print_json(facts: object) -> None:
    """Facts with `--json`."""
    click.echo(msgspec.json.format(msgspec.json.encode(facts), indent=2))


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def utc(time_ns: int) -> str:
    """A time (ns since 1970), as ISO 8601."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc_in_text(time_ns: int) -> str:
    """The same within a sentence."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def kept_reason(reason: str, until_ns: int) -> str:
    """Why a target did not drop a snapshot; `reason` is one of Stays, or of a later version."""
    return {
        Stays.LOCKED.value: f"it is locked there until {utc(until_ns)}",
        Stays.RIGHT.value: "the token may not drop: it takes the right to prune",
        Stays.HELD.value: "it is held there",
        Stays.NEWEST.value: "it is the newest there, or the newest good one",
    }.get(reason, reason)
