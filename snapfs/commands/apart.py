"""Work in a process of its own, for who forks later: threads that a library has begun do not come along in a fork."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import msgspec

from snapfs.errors import EXIT_BUG, EXIT_ENVIRONMENT, SnapfsError


def apart(work: Callable[[], None]) -> None:
    """Do it in a child, which shares stderr with us. Raises what it raised, as a SnapfsError with its exit code."""
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        os.close(heard)
        _child(work, told)
    os.close(told)
    with open(heard, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise SnapfsError("the process that prepares the mount died")
    words, code = msgspec.json.decode(answer, type=tuple[str, int])
    if code:
        failure = SnapfsError(words)
        failure.exit_code = code
        raise failure


def _child(work: Callable[[], None], told: int) -> None:
    answer = "", 0
    try:
        work()
    except SnapfsError as error:
        answer = str(error), error.exit_code
    except OSError as error:
        answer = str(error), EXIT_ENVIRONMENT
    except BaseException as error:
        traceback.print_exc()
        answer = f"it failed: {error!r}", EXIT_BUG
    finally:
        os.write(told, msgspec.json.encode(answer))
        os._exit(0)
