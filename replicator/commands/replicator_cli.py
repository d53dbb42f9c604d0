"""The command line of the replicator: arguments in, exit codes out. Conventions and codes are those of `snapfs`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from replicator.commands import (
    key_commands,
    mirror_commands,
    prune_command,
    push_commands,
    serve_command,
    status_command,
    target_commands,
    token_commands,
)
from snapfs import __version__
from snapfs.base import commandline, errors

_CODES = f"""\b
Exit codes:
  {errors.EXIT_OK:3}  done
  {errors.EXIT_USAGE:3}  the command line is wrong
  {errors.EXIT_ENVIRONMENT:3}  the command cannot be done here: wrong path, no permission, no connection, bad setting
  {errors.EXIT_BUSY:3}  another process holds what is needed, such as a volume that is served
  {errors.EXIT_CORRUPT:3}  stored bytes are damaged
  {errors.EXIT_VERSION:3}  a format or protocol of a later version
  {errors.EXIT_ATTENTION:3}  of status: a target is not known to have everything
{commandline.EXIT_CODES}"""


@click.group(
    epilog=_CODES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="snapfs-replicator")
def cli() -> None:
    """Ships the snapshots of snapfs volumes to mirrors, and is such a mirror."""


for _command in (
    *serve_command.COMMANDS,
    *mirror_commands.COMMANDS,
    *token_commands.COMMANDS,
    *target_commands.COMMANDS,
    *prune_command.COMMANDS,
    *push_commands.COMMANDS,
    *status_command.COMMANDS,
    *key_commands.COMMANDS,
):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return commandline.run(cli, "snapfs-replicator", arguments)


def main() -> None:
    """The entry point of the `snapfs-replicator` command."""
    commandline.main(cli, "snapfs-replicator")


if __name__ == "__main__":
    main()
