"""The command line of the replicator: arguments in, exit codes out. Conventions and codes are those of `snapfs`."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from replicator import commands_key, commands_mirror, commands_push
from snapfs import __version__, errors
from snapfs.errors import SnapfsError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_UNHEARD = 128 + signal.SIGPIPE

_CODES = f"""\b
Exit codes:
  {errors.EXIT_OK:3}  done
  {errors.EXIT_USAGE:3}  the command line is wrong
  {errors.EXIT_ENVIRONMENT:3}  what was asked cannot be done here: wrong path, no permission, no connection, bad setting
  {errors.EXIT_BUSY:3}  somebody else holds what is needed, such as a volume that is served
  {errors.EXIT_CORRUPT:3}  stored bytes are damaged
  {errors.EXIT_VERSION:3}  a format or protocol of a later version
  {errors.EXIT_BUG:3}  a bug: please report the traceback
  {EXIT_INTERRUPTED:3}  interrupted
  {EXIT_UNHEARD:3}  whoever read our stdout has closed it
"""


@click.group(
    epilog=_CODES,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="snapfs-replicator")
def cli() -> None:
    """Ships the snapshots of snapfs volumes to mirrors, and is such a mirror."""


for _command in (*commands_mirror.COMMANDS, *commands_push.COMMANDS, *commands_key.COMMANDS):
    cli.add_command(_command)


def run(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one for each way to end
    """Run one command and return its exit code."""
    try:
        with cli.make_context("snapfs-replicator", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return errors.EXIT_OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNHEARD
    except click.ClickException as error:
        used = getattr(error, "ctx", None)
        _complain(f"{error.format_message()}{f' (see `{used.command_path} --help`)' if used else ''}")
        return error.exit_code
    except SnapfsError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        _complain(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        return errors.EXIT_ENVIRONMENT
    except Exception:
        traceback.print_exc()
        return errors.EXIT_BUG


def _complain(line: str) -> None:
    click.echo(f"snapfs-replicator: {' '.join(line.split())}", err=True)


def main() -> None:
    """The entry point of the `snapfs-replicator` command."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.exit(run())


if __name__ == "__main__":
    main()
