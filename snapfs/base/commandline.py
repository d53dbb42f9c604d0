"""How a command of ours ends, whichever program it belongs to: an exit code, and at most one line on stderr.

Invariants:
1. Facts go to stdout, everything else to stderr.
2. A failure that is not a bug is one line on stderr (with --json an object: `error`, `exit_code`, `program`) and the
   exit code of its kind; a bug is a traceback and code 70.
3. A reader that closes our stdout early (`| head`) ends us quietly.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from snapfs.base import errors
from snapfs.base.errors import SnapfsError, printable
from snapfs.base.logs import log_output

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_UNHEARD = 128 + signal.SIGPIPE
EXIT_CODES = f"""\
  {errors.EXIT_BUG:3}  a bug: please report the traceback
  {EXIT_INTERRUPTED:3}  interrupted
  {EXIT_UNHEARD:3}  the reader of our stdout has closed it
"""
"""For the help of a program: the codes that do not depend on what it does."""


def run(cli: click.Group, program: str, arguments: Sequence[str] | None = None, given: object = None) -> int:
    """Run one command and return its exit code. `arguments` None: those of the process. `given`: for the command to
    find in its context."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        with cli.make_context(program, words, obj=given) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, program, as_json)
    return errors.EXIT_OK


def exit_code_of(failure: BaseException, program: str, as_json: bool = False) -> int:  # noqa: PLR0911 - one for each way
    """The exit code of a command that ended with this, about which one line is written to stderr."""

    def complain(line: str, code: int) -> None:
        _complain(program, line, code, as_json)

    try:
        raise failure
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        return EXIT_UNHEARD
    except click.ClickException as error:
        used = getattr(error, "ctx", None)
        complain(f"{error.format_message()}{f' (see `{used.command_path} --help`)' if used else ''}", error.exit_code)
        return error.exit_code
    except SnapfsError as error:
        complain(str(error), error.exit_code)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted", EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    except OSError as error:
        complain(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", errors.EXIT_ENVIRONMENT)
        return errors.EXIT_ENVIRONMENT
    except Exception:
        if log_output.is_json():
            logging.getLogger(program).critical("a bug", exc_info=True)
        else:
            traceback.print_exc()
        return errors.EXIT_BUG


def _complain(program: str, line: str, code: int, as_json: bool) -> None:
    """One line on stderr; with --json an object, and of a process that logs JSON one of its lines."""
    line = " ".join(line.split())
    if log_output.is_json():
        return logging.getLogger(program).error("%s", line)
    shown = (
        json.dumps({"error": line, "exit_code": code, "program": program})
        if as_json
        else f"{program}: {printable(line)}"
    )
    return click.echo(shown, err=True)


def open_standard() -> None:
    """Open descriptors 0 to 2 on /dev/null where the parent process has closed them.

    To be called before anything is opened: what takes such a number would get what is meant for stdout or stderr, or be
    closed as theirs in a child; and Python has no sys.stdout then.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)
            os.set_inheritable(fd, True)
        if getattr(sys, name) is None:
            stream = os.fdopen(fd, mode, errors="backslashreplace" if fd == 2 else None, closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def main(cli: click.Group, program: str) -> NoReturn:
    """Be that program; or, where the environment requests it (_PROGRAM_COMPLETE), print a completion for a shell."""
    open_standard()
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    if instruction := os.environ.get(variable):
        sys.exit(shell_complete(cli, {}, program, variable, instruction))
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.exit(run(cli, program))
