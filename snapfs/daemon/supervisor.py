"""The supervisor: a small process that holds a mount while daemons come and go.

It owns what must outlive a daemon: the descriptor of /dev/fuse, the INIT request with the flags agreed on, and the lock
of the volume. It imports the daemon's code once and forks each daemon from itself (a start of Python would cost the
application most of its wait), never touches the mount, and does nothing but wait. How a daemon and its supervisor talk
is in supervision/daemon_handle.py.

Invariants:
1. Until `held` the mount belongs to the daemon: if it dies, all is over as if there were no supervisor.
2. From `held` to `ended` there is a daemon, or one is about to be started, or the supervisor has given up: then the
   connection is aborted, and processes that wait for the mount get an error.
3. A daemon that was killed is gone, or its requests are aborted (fuse_abort.py), before the next opens the volume.
4. The supervisor leaves signals to the daemon: TERM and INT are passed on, also to the next one if the present one dies
   over them.
5. An upgrade replaces the supervisor's own program first, while the daemon serves (supervision/supervisor_upgrade.py),
   and only then the daemon. One that has not left within LEAVE_SECONDS serves on, and the status says so.
6. When another daemon is started is decided in supervision/restart_policy.py. Where memory is short the kernel takes
   the daemon, not its supervisor.

If the supervisor is killed, the daemon serves on, and its death is the end of the mount; under systemd the descriptor
store has what the supervisor had, and the unit's next start goes on with it (supervision/descriptor_store.py).
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

from snapfs.daemon import installation_wait, mount_end
from snapfs.daemon.daemon_deaths import DaemonDeaths
from snapfs.daemon.supervision import asleep, supervisor_upgrade
from snapfs.daemon.supervision.asleep import CommandLine
from snapfs.daemon.supervision.child_process import not_reaped
from snapfs.daemon.supervision.daemon_handle import HELD, LEFT, READY, STAYS, UNFIT, DaemonHandle, Held
from snapfs.daemon.supervision.forking import fork_daemon, fork_helper
from snapfs.daemon.supervision.mount_record import MountRecord
from snapfs.daemon.supervision.restart_policy import Death
from snapfs.daemon.supervision.running_daemon import RunningDaemon
from snapfs.daemon.supervision.signal_pipe import LEAVE, PASSED_ON, UPGRADE, SignalPipe
from snapfs.daemon.supervision.supervisor_state import STATE, ProcessState  # noqa: F401  # STATE: for other versions
from snapfs.daemon.supervision.supervisor_upgrade import NOT_UPGRADED, HandedOver
from snapfs.daemon.supervision.syncfs_helper import SyncfsHelper

log = logging.getLogger(__name__)

LEAVE_SECONDS: Final = 50.0
"""What a daemon gets that is to leave: more than succession.py lets it take."""


def nothing() -> None: ...


class Supervisor:
    """Holds one mount. How one begins is in supervisor_origin.py."""

    def __init__(
        self,
        record: MountRecord,
        processes: ProcessState = ProcessState(),  # noqa: B008  # frozen
        *,
        command: CommandLine | None = None,
        woken_s: float = 0.0,
        after_start: Callable[[], None] = nothing,
        after_ready: Callable[[], None] = nothing,
    ) -> None:
        """`processes`: of a mount that is there. `command`, `woken_s`: what the process was started with, if that is
        not what it runs now, and when it woke up, monotonic. `after_start` is called once, in each process but the
        first daemon's, when that one is started; `after_ready` in the supervisor, when a daemon answers.
        """
        self._record, self._command = record, command or CommandLine.of_process()
        self._daemon = processes.daemon
        self._predecessors, self._children = list(processes.predecessors), list(processes.children)
        self._passed_on = processes.passed_on
        self._deaths = DaemonDeaths(processes.deaths, processes.gap_s, woken_s, alone=processes.daemon is None)
        self._unfit = ""
        self._replaces, self._leaving = not processes.asleep, False
        self._leave_by_s = 0.0  # monotonic; 0: the daemon is not to leave
        self._after_start, self._after_ready = after_start, after_ready
        self._signals: SignalPipe | None = None

    @property
    def lock(self) -> int:
        return self._record.lock

    def run(self) -> DaemonHandle:
        """Return in each daemon, as its process begins; in the supervisor never: it exits with the daemon's code."""
        gc.collect()
        gc.freeze()
        self._signals = SignalPipe()
        handle = None
        if self._daemon is None:
            handle = self._start()
        elif self._replaces:
            self._request_leave(self._daemon)
        while handle is None:
            happened = self._wait(self._patience_s())
            if self._daemon is not None and self._daemon.is_dead:
                handle = self._after(self._daemon)
            elif self._daemon is not None and 0.0 < self._leave_by_s <= time.monotonic():
                self._note_staying(f"process {self._daemon.pid} was to leave, and has not within {LEAVE_SECONDS:.0f} s")
            elif not happened and self._may_sleep:
                self._sleep()
        return handle

    def _patience_s(self) -> float | None:
        if self._leave_by_s:
            return max(0.0, self._leave_by_s - time.monotonic())
        return asleep.AWAKE_SECONDS if self._may_sleep else None

    # -- while nothing happens

    @property
    def _may_sleep(self) -> bool:
        """Whether only a death or a signal can be next (asleep.py)."""
        is_serving = self._daemon is not None and READY in self._daemon.reported and self._record.held is not None
        under_way = self._predecessors or self._passed_on or self._leave_by_s
        return is_serving and not under_way and asleep.program() is not None

    def _sleep(self) -> None:
        program, daemon, held = asleep.program(), self._daemon, self._record.held
        if program is not None and daemon is not None and held is not None:
            with contextlib.suppress(OSError):  # it stays awake
                self._become(held, self._command.asleep(program, daemon.pidfd), is_asleep=True)

    def _become(self, held: Held, words: list[str], *, is_asleep: bool = False) -> NoReturn:
        """Run another program, which goes on. OSError."""
        assert self._signals is not None
        record, deaths = self._record, self._deaths
        processes = ProcessState(
            self._daemon, self._predecessors, self._children, self._passed_on, deaths.known, deaths.gap_s,
            asleep=is_asleep, status_path=record.status_path,
        )  # fmt: skip
        handed = HandedOver(record.state(held), processes, record.lock, record.state_fd)
        supervisor_upgrade.become(handed, self._signals, words)

    # -- starting a daemon

    def _start(self) -> DaemonHandle | None:
        """Fork a daemon; its handle in there, None here."""
        assert self._signals is not None
        record, mine = self._record, self._record.state_fd
        helper = fork_helper(self._signals, (mine, record.lock, record.device), record.mountpoint, self._after_start)
        self._children.append(helper.pid)
        supervisor, predecessor = os.getpid(), next(iter(self._predecessors), 0)
        forked = fork_daemon(self._signals, (mine,))
        if forked.pid == 0:
            flusher = SyncfsHelper(helper.channel)
            handle = DaemonHandle(record.daemons, record.held, predecessor, forked.channel, flusher, supervisor)
            handle.start_canary()
            return handle
        helper.channel.close()
        self._daemon = RunningDaemon(forked.pid, forked.channel)
        record.started()
        self._write_status("starting")
        self._after_start()
        self._after_start = nothing
        return None

    # -- waiting

    def _wait(self, seconds: float | None = None) -> bool:
        """Wait until something happens, for so long at most, and act on it; whether anything did."""
        assert self._signals is not None
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        if self._daemon is not None:
            self._daemon.register(poll)
        milliseconds = None if seconds is None else seconds * 1000
        happened = poll.poll(1000.0 if self._predecessors and seconds is None else milliseconds)
        self._predecessors, self._children = not_reaped(self._predecessors), not_reaped(self._children)
        for number in self._signals.received():
            self._at(number)
        if self._daemon is not None:
            self._take_messages(self._daemon)
        return bool(happened)

    def _at(self, number: signal.Signals) -> None:
        if number in PASSED_ON:
            self._passed_on = PASSED_ON[number]
            if self._daemon is not None:
                self._daemon.signal(self._passed_on)
        elif number == UPGRADE and self._record.held is not None:
            self._upgrade(self._record.held)
        elif number == LEAVE and self._record.held is not None and os.environ.get("NOTIFY_SOCKET"):
            self._leaving = True
            if self._daemon is not None:
                self._request_leave(self._daemon)

    def _take_messages(self, daemon: RunningDaemon) -> None:
        for word, rest, descriptors in daemon.messages():
            if word == HELD:
                facts = json.loads(rest)
                self._record.hold(Held(descriptors[0], bytes.fromhex(facts["init"]), facts["flags"]))
            elif word == READY:
                self._after_ready()
                self._note_ready(daemon)
            elif word == STAYS:
                self._note_staying(f"process {daemon.pid} serves on: {rest.decode()}")
            elif word == UNFIT:
                self._unfit = rest.decode()

    def _note_ready(self, daemon: RunningDaemon) -> None:
        self._deaths.end_gap(daemon.ready_s)
        self._write_status("serving")
        if self._deaths.gap_s is not None:
            log.info("process %d answers; no daemon did for %.3f s", daemon.pid, self._deaths.gap_s)
        if self._passed_on and not daemon.was_signalled:  # its predecessor died over the signal
            daemon.signal(self._passed_on)
        if self._leaving:
            self._request_leave(daemon)

    # -- the end of a daemon

    def _after(self, daemon: RunningDaemon) -> DaemonHandle | None:
        """The daemon is dead: go on, or end."""
        self._take_messages(daemon)
        daemon.close()
        self._daemon = None
        self._deaths.begin_gap(daemon)
        code = mount_end.exit_code(self._record, daemon)
        if code is None:
            self._predecessors.append(daemon.pid)
            code = -signal.SIGKILL
        was_to_leave, self._leave_by_s = bool(self._leave_by_s), 0.0
        if LEFT in daemon.reported or (self._leaving and not self._predecessors):
            return self._after_leaving()
        if was_to_leave:
            self._record.upgraded()  # it died over it: what follows is of the new program all the same
        if UNFIT in daemon.reported and self._record.held is not None:
            self._wait_for_installation(self._record.held)
        return self._restart(daemon.pid, self._deaths.note(daemon, code))

    def _wait_for_installation(self, held: Held) -> None:
        """Become a fresh program; return if it is no use."""
        if installation_wait.wait(self._record, self._deaths, self._unfit, self._wait) and not self._passed_on:
            with contextlib.suppress(OSError):
                self._become(held, self._command.awake(self._deaths.alone_since_s), is_asleep=True)

    def _restart(self, pid: int, death: Death) -> DaemonHandle | None:
        wait_s = self._deaths.delay_s()
        if wait_s is None:
            mount_end.give_up(self._record, self._deaths)
        self._record.restarted()
        log.error("the daemon (process %d) %s: starting another in %.1f s", pid, death.how, wait_s)
        self._write_status("restarting", death.how)
        until_s = death.time_s + wait_s
        while (rest_s := until_s - time.monotonic()) > 0:
            self._wait(rest_s)
        return self._start()

    # -- replacing a daemon on purpose

    def _request_leave(self, daemon: RunningDaemon) -> None:
        self._leave_by_s = time.monotonic() + LEAVE_SECONDS
        daemon.request_leave()
        self._write_status("serving", f"process {daemon.pid} is to finish what is under way, and to leave")

    def _note_staying(self, why: str) -> None:
        """The daemon does not leave: all goes on with it. If it leaves later, another follows it."""
        log.error("%s: %s", NOT_UPGRADED, why)
        self._leave_by_s, self._leaving = 0.0, False
        self._write_status("serving", f"{NOT_UPGRADED}: {why}")

    def _after_leaving(self) -> DaemonHandle | None:
        if self._leaving:
            self._write_status("left")
            sys.exit(0)
        self._record.upgraded()
        return self._start()

    def _upgrade(self, held: Held) -> None:
        """Become the newly installed program, which goes on in `resumed`; unless it could not."""
        self._write_status("serving", "the supervisor tries whether the installed snapfs can be started")
        why_not = supervisor_upgrade.why_not_installed()
        if not why_not:
            log.info("upgrading: the supervisor first")
            try:
                self._become(held, [sys.executable, *self._command.words])
            except OSError as error:
                why_not = f"the installed snapfs cannot be started: {error}"
        log.error("%s: %s", NOT_UPGRADED, why_not)
        self._write_status("serving", f"{NOT_UPGRADED}: {why_not}")

    def _write_status(self, state: str, words: str = "") -> None:
        daemon = self._daemon.pid if self._daemon is not None else None
        self._record.write_status(state, daemon, self._deaths.gap_s, words)
