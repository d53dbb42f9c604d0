"""The option `--log-format` of the commands that become or start a process that logs."""

from __future__ import annotations

import click

from snapfs.base.logs import log_output

log_format_option = click.option(
    "--log-format", type=click.Choice(log_output.FORMATS), default="auto", envvar=log_output.VARIABLE,
    help="How the log is written: text (auto), or json: an object a line.",
)  # fmt: skip
