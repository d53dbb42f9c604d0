"""What a check works with: the scratch mount, a private folder, a deadline, and processes that end with it.

Invariants:
1. When `close` returns, no process that a check started through this is left that reacts to SIGKILL: each is in a group
   of its own, which is ended. Each ends with us as well, if we are killed.
2. Nothing waits longer than until the deadline: a check that is late has failed (CheckFailedError).
3. A check that cannot be run here (no such program, no right to be that user) is no verdict on the snapshot:
   CheckImpossibleError.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapfs.base.errors import UserError
from snapfs.commands.drills.drill_process import die_with

if TYPE_CHECKING:
    from snapfs.store.repository.repository import Repository

_LOOK_S, _LONGEST_LOOK_S = 0.02, 0.25
_TERM_S = 5.0
_OUTPUT_CHARS = 300


class CheckFailedError(UserError):
    """The application does not work on this snapshot: why, in one line. `status`: of the command that failed, or 0."""

    status = 0


class CheckImpossibleError(UserError):
    """The check cannot be run on this host."""


@dataclass(slots=True)
class CheckContext:
    """What one run of a check gets.

    `mount`: the snapshot, writable, a copy of its own. `scratch`: a private folder that every user can enter.
    `snapshot`: its number, or BRANCH/NUMBER. `deadline_s`: by time.monotonic. `history`: opens the history that the
    snapshot is of, for reading.
    """

    mount: Path
    scratch: Path
    snapshot: str
    deadline_s: float
    history: Callable[[], AbstractContextManager[Repository]]
    ready_s: float | None = None
    """When the application answered first, by time.monotonic."""
    lines: list[str] = field(default_factory=list)
    """What was found, for people."""
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def left_s(self) -> float:
        """Until the deadline. CheckFailedError when it has passed."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= 0:
            raise CheckFailedError("it did not end in its time")
        return left_s

    def answered(self) -> None:
        """The application works; what follows is a closer look."""
        self.ready_s = self.ready_s or time.monotonic()

    def start(self, command: Sequence[str], user: int | None = None, *, log: Path | None = None) -> Server:
        """Start a process that goes on until `close`. `user`: be this user, who has to be another than root."""
        output = log or self.scratch / f"{os.path.basename(command[0])}.log"
        process = self._popen(command, user, output)
        return Server(self, process, output)

    def run(self, command: Sequence[str], user: int | None = None) -> str:
        """Run a command to its end; what it wrote. CheckFailedError if it fails, in the words of its last line."""
        output = self.scratch / f"run-{len(self._started)}.log"
        process = self._popen(command, user, output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.left_s())
        self.left_s()
        if process.returncode:
            how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
            failure = CheckFailedError(f"{os.path.basename(command[0])}: {how}{_last_line(output)}")
            failure.status = process.returncode
            raise failure
        return output.read_text(errors="replace")

    def wait_for(self, ready: Callable[[], bool], server: Server) -> None:
        """Return when `ready()`. CheckFailedError if the server ends, or the deadline comes.

        Looks become rarer: each may be a client that takes a processor from the recovery that it waits for.
        """
        look_s = _LOOK_S
        while not ready():
            server.check_alive()
            time.sleep(min(look_s, self.left_s()))
            look_s = min(look_s * 1.3, _LONGEST_LOOK_S)

    def close(self) -> None:
        """End everything that was started."""
        for process in reversed(self._started):
            _end_group(process)
        self._started.clear()

    def _popen(self, command: Sequence[str], user: int | None, output: Path) -> subprocess.Popen[str]:
        with open(output, "a", encoding="utf-8") as log:
            try:
                process: subprocess.Popen[str] = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True,
                    cwd=self.mount if user is None else "/", start_new_session=True, env=self._environment(),
                    preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509 - no thread runs here
                    **_as_user(user),
                )  # fmt: skip
            except OSError as error:
                raise CheckImpossibleError(f"cannot run {command[0]}: {error.strerror}") from None
        self._started.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {
            **kept, "LC_ALL": "C.UTF-8", "SNAPFS_DRILL_MOUNT": str(self.mount),
            "SNAPFS_DRILL_SCRATCH": str(self.scratch), "SNAPFS_DRILL_SNAPSHOT": self.snapshot,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """A process of a check that goes on."""

    context: CheckContext
    process: subprocess.Popen[str]
    log: Path

    def check_alive(self) -> None:
        """CheckFailedError if it has ended."""
        if self.process.poll() is not None:
            raise CheckFailedError(f"{os.path.basename(str(self.log))[:-4]} does not start{_last_line(self.log)}")


def program(*names: str, folders: Sequence[str] = ()) -> str:
    """The first program that there is. CheckImpossibleError if there is none."""
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = next((each for name in names if (each := shutil.which(name, path=path))), None)
    if found is None:
        raise CheckImpossibleError(f"{names[0]} is not installed here")
    return found


def owner_of(path: Path) -> int | None:
    """Whom to be for what this user owns: None for ourselves. CheckImpossibleError if we cannot be that user."""
    uid = path.stat().st_uid
    if uid == os.geteuid() != 0:
        return None
    if os.geteuid() != 0:
        raise CheckImpossibleError(f"{path} is user {uid}'s: run the drill as that user, or as root")
    return uid


def unprivileged_owner_of(path: Path) -> int | None:
    """The same for programs that refuse to be root."""
    uid = owner_of(path)
    if uid == 0:
        raise CheckImpossibleError(f"{path} is root's, and its server does not run as root")
    return uid


def folders_with(mount: Path, *names: str, depth: int = 4) -> Iterator[Path]:
    """The folders that have all these names in them, down to a depth. One that has is not searched further."""
    pending = [(mount, 0)]
    while pending:
        folder, level = pending.pop(0)
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        if all(name in found for name in names):
            yield folder
        elif level < depth:
            pending += [(folder / name, level + 1) for name, is_folder in sorted(found.items()) if is_folder]


def _as_user(user: int | None) -> dict[str, Any]:
    if user is None or user == os.geteuid():
        return {}
    with contextlib.suppress(KeyError):
        entry = pwd.getpwuid(user)
        return {"user": user, "group": entry.pw_gid, "extra_groups": os.getgrouplist(entry.pw_name, entry.pw_gid)}
    return {"user": user, "group": user, "extra_groups": []}


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    words = "".join(char if char.isprintable() else "?" for char in lines[-1]) if lines else ""
    return f": {words[:_OUTPUT_CHARS]}" if words else ""


def _end_group(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERM_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left running
            return
