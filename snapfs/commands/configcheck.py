"""The command `configcheck`: the settings of a volume or of a file, checked and printed."""

from __future__ import annotations

import os

import click

from snapfs.base.errors import UserError
from snapfs.base.settings import config, settings_template, toml_text
from snapfs.commands.support import output
from snapfs.commands.support.check_config import problems
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option


@click.command("configcheck", short_help="Check settings and print them.")
@click.argument("target", metavar="[VOLUME|FILE]", required=False)
@click.option("--defaults", is_flag=True, help="Print every setting with its reason and its default, as TOML.")
@json_option
def configcheck(target: str | None, defaults: bool, as_json: bool) -> None:
    """Check the settings of a volume, or of a file before it becomes one's, and print them all.

    Files that they name (tokens, keys, certificates) are read, and variables (${NAME}) must be set. The exit code is 3
    if something is wrong.
    """
    if defaults:
        return click.echo(settings_template.template().lstrip(), nl=False)
    if target is None:
        raise click.UsageError("Name a VOLUME or a FILE, or use --defaults.")
    read = _read_config(target)
    wrong = list(problems(read))
    if as_json:
        output.emit_json(config.encode(read) | ({"problems": wrong} if wrong else {}))
    else:
        for section, table in config.encode(read).items():
            for name, value in table.items():
                click.echo(f"{section}.{name} = {_toml(value)}")
    if wrong:
        raise UserError("; ".join(wrong))


def _read_config(target: str) -> config.Config:
    if not os.path.isfile(target):
        return locate(target).volume().config
    try:
        with open(target, encoding="utf-8") as file:
            tables = toml_text.parse_toml(file.read(), target).unwrap()
    except UnicodeDecodeError as error:
        raise UserError(f"{target}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    tables.pop("volume", None)
    return config.decode(tables, target)


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(settings_template.shown(table) for table in value)}]"
    return settings_template.shown(value)


COMMANDS = (configcheck,)
