"""How a command of ours ends, whichever program it belongs to: an exit code, and at most one line on stderr.

Invariants:
1. Facts go to stdout, everything else to stderr.
2. A failure that is not a bug is one line on stderr and the exit code of its kind; a bug is a traceback and code 70.
3. Whoever closes our stdout early (`| head`) ends us quietly.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from snapfs import errors
from snapfs.errors import SnapfsError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_UNHEARD = 128 + signal.SIGPIPE
EXIT_CODES = f"""\
  {errors.EXIT_BUG:3}  a bug: please report the traceback
  {EXIT_INTERRUPTED:3}  interrupted
  {EXIT_UNHEARD:3}  whoever read our stdout has closed it
"""
"""For the help of a program: the codes that do not depend on what it does."""


def run(cli: click.Group, program: str, arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one for each way
    """Run one command and return its exit code. `arguments` None: those of the process."""
    try:
        with cli.make_context(program, list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
        sys.stdout.flush()
        return errors.EXIT_OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        return EXIT_UNHEARD
    except click.ClickException as error:
        used = getattr(error, "ctx", None)
        _complain(program, f"{error.format_message()}{f' (see `{used.command_path} --help`)' if used else ''}")
        return error.exit_code
    except SnapfsError as error:
        _complain(program, str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain(program, "interrupted")
        return EXIT_INTERRUPTED
    except OSError as error:
        _complain(program, f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        return errors.EXIT_ENVIRONMENT
    except Exception:
        traceback.print_exc()
        return errors.EXIT_BUG


def _complain(program: str, line: str) -> None:
    click.echo(f"{program}: {' '.join(line.split())}", err=True)


def main(cli: click.Group, program: str) -> NoReturn:
    """Be that program."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.exit(run(cli, program))
