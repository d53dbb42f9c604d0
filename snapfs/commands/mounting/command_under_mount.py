"""A command that runs under a mount: the mount outlives neither it nor us, whatever signal comes."""

from __future__ import annotations

import signal
import subprocess
import time

from snapfs.base.errors import BusyError, UserError
from snapfs.commands.mounting.unmounting import StaysElsewhereError, unmount_and_wait
from snapfs.commands.support import output

_BUSY_TRIES_S = 5.0


def run_under_mount(mountpoint: str, command: tuple[str, ...]) -> int:
    """Run `command` and unmount when it ends; its exit code. SIGTERM and SIGHUP are passed on to it."""
    try:
        code = _run(command)
    finally:
        unmount_when_idle(mountpoint)
    return code


def _run(command: tuple[str, ...]) -> int:
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    try:
        # The terminal sends SIGINT to both of us; the application alone decides what it means.
        # A handler, unlike SIG_IGN, is not inherited by the application.
        signal.signal(signal.SIGINT, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, pass_on)
        child = subprocess.Popen(command)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    for passed in early:
        child.send_signal(passed)
    code = child.wait()
    return 128 - code if code < 0 else code


def unmount_when_idle(mountpoint: str) -> None:
    """Unmount; lazily and with a remark if something that the command left behind still holds on."""
    deadline = time.monotonic() + _BUSY_TRIES_S
    while True:
        try:
            return unmount_and_wait(mountpoint, lazy=False)
        except StaysElsewhereError as stays:
            return output.remark(str(stays))
        except BusyError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    output.remark(f"{mountpoint} is still in use: it goes when its last user does")
    return unmount_and_wait(mountpoint, lazy=True)
