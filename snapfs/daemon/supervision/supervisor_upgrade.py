"""The upgrade of a supervisor: it becomes the newly installed program by `exec`, and goes on with what it held.

The process, its children and its descriptors stay, so the daemon serves meanwhile, and is replaced afterwards. A
program that could not go on would leave the mount without a supervisor, so the installed one is tried first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from snapfs.daemon.supervision.restart_policy import Death
from snapfs.daemon.supervision.running_daemon import RunningDaemon
from snapfs.daemon.supervision.signal_pipe import SignalPipe
from snapfs.daemon.supervision.supervisor_state import STATE, HeldMount, ProcessState

NOT_UPGRADED: Final = "not upgraded, all is as before"
RESUME_VARIABLE: Final = "SNAPFS_RESUME_FD"
STATE_VERSION_PROBE = """
import importlib.util, sys
import snapfs.daemon.supervisor as supervisor
if importlib.util.find_spec("snapfs.base.native_build"):
    from snapfs.base.native_build import refusal
    if refusal("python"):
        sys.exit(refusal("python"))
print(supervisor.STATE.version if hasattr(supervisor, "STATE") else 1)
"""
"""What the installed program is run with: it may be of another version, and its C extensions those of a third. Earlier
versions import `snapfs.supervisor`, which is there for them."""
_PROBE_SECONDS = 60.0


def why_not_installed() -> str:
    """Why the snapfs that is installed now cannot go on with what we hand over; empty if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", STATE_VERSION_PROBE], stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=_PROBE_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the installed snapfs cannot be started: {error}"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return f"the installed snapfs cannot be started: {lines[-1] if lines else f'exit code {done.returncode}'}"
    return why_not_read(int(done.stdout), STATE.version)


def why_not_read(known: int, handed: int) -> str:
    """Why a snapfs that reads state up to format `known` cannot go on with one of format `handed`; empty if it can."""
    return f"the installed snapfs reads supervisor state up to format {known}, and this is {handed}" * (known < handed)


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What one program leaves to the next. `lock`, `state_fd`: descriptors, of the volume's lock and of what the
    service manager keeps."""

    mount: HeldMount
    processes: ProcessState
    lock: int
    state_fd: int

    def facts(self) -> dict[str, Any]:
        """With the encoded keys."""
        places = {"lock": self.lock, "device": self.mount.held.device, "kept": self.state_fd}
        return {**self.mount.facts(), **self.processes.facts(), **places}

    def descriptors(self) -> list[int]:
        """What the next program inherits."""
        daemon = self.processes.daemon
        own = [] if daemon is None else [daemon.channel.fileno(), daemon.pidfd]
        return [self.lock, self.mount.held.device, self.state_fd, *own]


def become(handed: HandedOver, signals: SignalPipe, words: Sequence[str]) -> NoReturn:
    """Run another program in this process; what it ends in goes on in `resume`. OSError: all is as before."""
    carrier = os.memfd_create("snapfs-upgrade", 0)
    inherited = [carrier, *handed.descriptors()]
    try:
        os.write(carrier, STATE.encode(handed.facts()))
        _inherit(inherited, True)
        signals.block()  # until the new program listens
        os.environ[RESUME_VARIABLE] = str(carrier)
        os.execv(words[0], list(words))
    except OSError:
        os.environ.pop(RESUME_VARIABLE, None)
        signals.unblock()
        _inherit(inherited, False)
        os.close(carrier)
        raise


def resume() -> HandedOver | None:
    """What this process held before an upgrade, None if there was none. Raises as STATE; it may be tried again."""
    carrier = int(os.environ.get(RESUME_VARIABLE, "-1"))
    if carrier < 0:
        return None
    facts = STATE.decode(os.pread(carrier, os.fstat(carrier).st_size, 0), "what the supervisor handed over")
    del os.environ[RESUME_VARIABLE]
    os.close(carrier)
    _inherit([facts["lock"], facts["device"], facts["kept"]], False)
    processes = ProcessState(
        _running(facts), facts["undead"], facts["children"], facts["passed_on"],
        [Death(*each) for each in facts.get("deaths", ())], facts.get("gap_s"), facts.get("asleep", False),
        facts.get("status", ""),
    )  # fmt: skip
    return HandedOver(HeldMount.of(facts, facts["device"]), processes, facts["lock"], facts["kept"])


def _running(facts: dict[str, Any]) -> RunningDaemon | None:
    if facts["daemon"] is None:
        return None
    pid, channel, reported, canary = facts["daemon"]
    pidfd, ready_s = facts.get("pidfd", -1), facts.get("ready_s", 0.0)
    _inherit([channel, pidfd], False)
    return RunningDaemon(pid, socket.socket(fileno=channel), canary, reported, pidfd=pidfd, ready_s=ready_s)


def _inherit(descriptors: Sequence[int], inheritable: bool) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.set_inheritable(fd, inheritable)
