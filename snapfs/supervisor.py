"""The supervisor: a small process that holds a mount while daemons come and go.

It owns what must outlive a daemon: the descriptor of /dev/fuse, the INIT request with the flags agreed on, and the lock
of the volume. It imports the daemon's code once and forks each daemon from itself (a start of Python would cost the
application most of its wait), never touches the mount, and does nothing but wait.

A daemon and its supervisor talk over a socket pair, one word a message:

    held    to the supervisor, with the descriptor: the mount is there, this is what outlives me
    canary  to the supervisor: the number of a thread that is gone as soon as the daemon is killed
    ready   to the supervisor: requests are being answered
    ended   to the supervisor: the mount is gone, I shall not be replaced
    leave   to the daemon: bring what you do to an end, and exit with `left`; another goes on
    left    to the supervisor: the next one may begin

Invariants:
1. Until `held` the mount belongs to the daemon: if it dies, all is over as if there were no supervisor.
2. From `held` to `ended` there is a daemon, or one is about to be started, or the supervisor has given up: then the
   connection is ended, and whoever waits for the mount gets an error.
3. A daemon that was killed is gone, or buried (burial.py), before the next one opens the volume.
4. What the supervisor does at a signal is the daemon's to do: TERM and INT are passed on, also to the next one if the
   present one dies over them.
5. An upgrade replaces the supervisor's own program first, while the daemon serves (`exec` keeps the process, its
   children and descriptors), and only then the daemon.

If the supervisor is killed, the daemon serves on, and its death is the end of the mount; under systemd the descriptor
store has what the supervisor had, and the unit's next start goes on with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from snapfs import systemd
from snapfs.errors import EXIT_BUG
from snapfs.helper import Helper, serve
from snapfs.signals import ENDING

log = logging.getLogger(__name__)

STATUS_NAME = "supervisor.json"
RESUME_VARIABLE = "SNAPFS_RESUME_FD"
DEVICE_NAME, LOCK_NAME, STATE_NAME = "snapfs-device", "snapfs-lock", "snapfs-state"
"""Under these the service manager keeps what we hold."""

END_SECONDS = 60.0
"""What a process of which nobody waits for the next one has to be gone, and to tell how it ended."""
STABLE_SECONDS = 0.2
"""A daemon that served for so long did not fail at what killed the one before."""
DELAYS_SECONDS = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Before the first, second... restart after lives that were shorter; then it is given up."""
CRASHES_AN_HOUR = 60
_HOUR_SECONDS = 3600.0
_REAP_SECONDS = 0.05
_MESSAGE_BYTES = 65536
_PASSED_ON = {signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGINT, signal.SIGHUP: signal.SIGTERM}
_UPGRADE, _LEAVE = signal.SIGUSR2, signal.SIGUSR1
_ALL_SIGNALS = (*_PASSED_ON, _UPGRADE, _LEAVE)


@dataclass(frozen=True, slots=True)
class Death:
    """How a life ended. `lived_s` counts from `ready`, 0 if it never was; `killed`: by SIGKILL, from outside."""

    time_s: float
    lived_s: float
    killed: bool


def delay_s(deaths: Sequence[Death]) -> float | None:
    """How long to wait before the next daemon; None: it is no use."""
    crashes = sum(not death.killed and death.time_s > deaths[-1].time_s - _HOUR_SECONDS for death in deaths)
    if crashes > CRASHES_AN_HOUR:
        return None
    short = 0
    for death in reversed(deaths):
        if death.lived_s >= STABLE_SECONDS:
            break
        short += 1
    return DELAYS_SECONDS[short] if short < len(DELAYS_SECONDS) else None


@dataclass(slots=True)
class Held:
    """A living mount, as a daemon hands it to the supervisor, and the supervisor to the next daemon."""

    device: int
    init: bytes
    flags: int


@dataclass(slots=True)
class Life:
    """What a daemon knows of its supervisor. `number`: how many served this mount before; `held`: it is to be adopted.

    `undead`: a predecessor that was killed and is not gone yet, or 0.
    """

    number: int
    held: Held | None
    undead: int
    channel: socket.socket
    helper: Helper
    supervisor: int

    def be_watched(self) -> None:
        """Begin a thread that only sleeps: it dies with the process at once, even if another of its threads cannot."""
        threading.Thread(target=threading.Event().wait, name="canary", daemon=True).start()
        canary = next(thread for thread in threading.enumerate() if thread.name == "canary")
        self.say(f"canary {canary.native_id}")

    def hold(self, device: int, init: bytes, flags: int) -> None:
        """Leave the mount to the supervisor, should we die."""
        facts = json.dumps({"init": init.hex(), "flags": flags}).encode()
        with contextlib.suppress(OSError):
            socket.send_fds(self.channel, [b"held " + facts], [device])

    def say(self, word: str) -> None:
        """`ready`, `ended`, `left`. A supervisor that is gone is not told."""
        with contextlib.suppress(OSError):
            self.channel.send(word.encode())

    def heard(self) -> str:
        """The next word of the supervisor, which is there; "" if it is gone."""
        with contextlib.suppress(OSError):
            return self.channel.recv(_MESSAGE_BYTES).decode()
        return ""


@dataclass(slots=True)
class _Daemon:
    """The daemon of the moment, seen from outside."""

    pid: int
    channel: socket.socket
    pidfd: int  # of the process, or better: of its canary
    canary: int = 0
    ready_s: float = 0.0
    said: set[str] = field(default_factory=set)
    was_told: bool = False  # to end


class Supervisor:
    """Holds one mount. `status_path`: where it says how it is; `lock`: the descriptor of the volume's lock."""

    def __init__(self, mountpoint: str, status_path: str, lock: int) -> None:
        self._mountpoint, self._status_path, self._lock = mountpoint, status_path, lock
        self._held: Held | None = None
        self._daemon: _Daemon | None = None
        self._lives = 0
        self._restarts = 0
        self._upgrades = 0
        self._deaths: list[Death] = []
        self._alone_since_s = 0.0
        self._gap_s: float | None = None
        self._undead: list[int] = []
        self._children: list[int] = []
        self._passed_on = 0
        self._leaving = False
        self._state_fd = -1
        self._wake: tuple[int, int] | None = None
        self.after_start: Callable[[], None] = lambda: None

    # -- its life

    def run(self) -> Life:
        """Return in each daemon, as its process begins; in the supervisor never: it exits with the daemon's code."""
        gc.collect()
        gc.freeze()
        self._listen()
        if self._daemon is None:
            life = self._start()
            if life is not None:
                return life
        else:
            self._ask_to_leave()
        while True:
            self._wait()
            if self._daemon is not None and self._is_dead(self._daemon):
                life = self._after(self._daemon)
                if life is not None:
                    return life

    def _start(self) -> Life | None:
        """Fork a daemon; its Life in there, None here."""
        helper = self._start_helper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undead = next(iter(self._undead), 0)
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # the daemon takes them when it can note them
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_daemon()
            self.after_start = lambda: None
            life = Life(self._lives, self._held, undead, theirs, Helper(helper), parent)
            life.be_watched()
            return life
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        theirs.close()
        helper.close()
        ours.setblocking(False)
        self._daemon = _Daemon(pid, ours, os.pidfd_open(pid))
        self._lives += 1
        self._keep()
        self._tell("starting")
        self.after_start()
        self.after_start = lambda: None
        return None

    def _start_helper(self) -> socket.socket:
        """Fork a helper (helper.py); the daemon's end of the way to it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                self._become_daemon()
                for fd in (self._lock, self._held.device if self._held is not None else -1):
                    if fd >= 0:
                        os.close(fd)
                self.after_start()
                serve(theirs, self._mountpoint)
            finally:
                os._exit(0)
        theirs.close()
        self._children.append(pid)
        return ours

    def _become_daemon(self) -> None:
        """Let go of what is the supervisor's, and do not hear the terminal's signals twice."""
        signal.set_wakeup_fd(-1)
        for number in _ALL_SIGNALS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        assert self._wake is not None
        for fd in (*self._wake, self._state_fd):
            if fd >= 0:
                os.close(fd)
        os.setpgid(0, 0)

    def _listen(self) -> None:
        """Have signals wake us; they are blocked across an `exec`."""
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        for number in _ALL_SIGNALS:
            signal.signal(number, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL_SIGNALS)

    def _wait(self, seconds: float | None = None) -> None:
        """Wait until something happens, and take it in."""
        assert self._wake is not None
        poll = select.poll()
        poll.register(self._wake[0], select.POLLIN)
        if self._daemon is not None:
            if self._daemon.channel.fileno() >= 0:
                poll.register(self._daemon.channel, select.POLLIN)
            poll.register(self._daemon.pidfd, select.POLLIN)
        poll.poll(1000.0 if self._undead and seconds is None else None if seconds is None else seconds * 1000)
        self._undead = [pid for pid in self._undead if _reap(pid, 0.0) is None]
        self._children = [pid for pid in self._children if _reap(pid, 0.0) is None]
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._wake[0], 64):
                self._at(signal.Signals(number))
        if self._daemon is not None:
            self._hear(self._daemon)

    def _at(self, number: signal.Signals) -> None:
        if number in _PASSED_ON:
            self._passed_on = _PASSED_ON[number]
            if self._daemon is not None:
                self._pass_on(self._daemon)
        elif number == _UPGRADE and self._held is not None:
            self._upgrade()
        elif number == _LEAVE and self._held is not None and os.environ.get("NOTIFY_SOCKET"):
            self._leaving = True
            self._ask_to_leave()

    def _hear(self, daemon: _Daemon) -> None:
        while daemon.channel.fileno() >= 0:
            try:
                message, descriptors, _, _ = socket.recv_fds(daemon.channel, _MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                daemon.channel.close()
                return
            word, _, rest = message.partition(b" ")
            daemon.said.add(word.decode())
            if word == b"held":
                facts = json.loads(rest)
                self._held = Held(descriptors[0], bytes.fromhex(facts["init"]), facts["flags"])
                self._keep()
            elif word == b"canary":
                with contextlib.suppress(OSError):  # it is dead already, or the kernel is older than 6.9
                    watched = os.pidfd_open(int(rest), os.O_EXCL)  # PIDFD_THREAD
                    os.close(daemon.pidfd)
                    daemon.pidfd = watched
                    daemon.canary = int(rest)
            elif word == b"ready":
                daemon.ready_s = time.monotonic()
                self._gap_s = daemon.ready_s - self._alone_since_s if self._alone_since_s else None
                self._tell("serving")
                if self._gap_s is not None:
                    log.info("process %d answers; nobody did for %.3f s", daemon.pid, self._gap_s)
                if self._passed_on and not daemon.was_told:  # of the one before
                    self._pass_on(daemon)

    def _pass_on(self, daemon: _Daemon) -> None:
        daemon.was_told = True
        _kill(daemon.pid, self._passed_on)

    # -- the end of a daemon

    def _is_dead(self, daemon: _Daemon) -> bool:
        poll = select.poll()
        poll.register(daemon.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _after(self, daemon: _Daemon) -> Life | None:
        """The daemon is dead: go on, or end."""
        self._hear(daemon)
        os.close(daemon.pidfd)
        daemon.channel.close()
        self._daemon = None
        self._alone_since_s = self._alone_since_s if not daemon.ready_s else time.monotonic()
        is_the_end = "ended" in daemon.said or self._held is None
        code = _reap(daemon.pid, END_SECONDS if is_the_end else _REAP_SECONDS)
        if code is None:
            self._undead.append(daemon.pid)
            code = -signal.SIGKILL
        if is_the_end:
            self._end(128 - code if code < 0 else code)
        if "left" in daemon.said:
            return self._after_leaving()
        now_s = time.monotonic()
        lived_s = now_s - daemon.ready_s if daemon.ready_s else 0.0
        self._deaths.append(Death(now_s, lived_s, code == -signal.SIGKILL))
        del self._deaths[:-1000]
        wait_s = delay_s(self._deaths)
        how = _how(code)
        if wait_s is None:
            self._give_up(how)
        self._restarts += 1
        log.error("the daemon (process %d) %s: starting another in %.1f s", daemon.pid, how, wait_s)
        self._tell("restarting", how)
        until_s = now_s + wait_s
        while (rest_s := until_s - time.monotonic()) > 0:
            self._wait(rest_s)
        return self._start()

    def _end(self, code: int) -> NoReturn:
        """The mount is gone, or never was."""
        for name in (DEVICE_NAME, LOCK_NAME, STATE_NAME) if self._state_fd >= 0 else ():
            systemd.forget(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._status_path)
        sys.exit(code)

    def _give_up(self, how: str) -> NoReturn:
        """Let the mount fail rather than hang."""
        words = (
            f"the daemon of {self._mountpoint} {how}, again and again ({len(self._deaths)} deaths): given up; "
            "the mount answers with errors from now on. Its last words are in daemon.log; "
            "`snapfs doctor` looks at the volume, `snapfs mount` starts anew"
        )
        log.critical("%s", words)
        systemd.notify(f"STATUS={words}")
        for name in (DEVICE_NAME, LOCK_NAME, STATE_NAME) if self._state_fd >= 0 else ():
            systemd.forget(name)
        assert self._held is not None
        abort(self._mountpoint, self._held.device)
        self._tell("failed", words)
        sys.exit(EXIT_BUG)

    # -- replacing a daemon on purpose

    def _ask_to_leave(self) -> None:
        if self._daemon is not None:
            with contextlib.suppress(OSError):
                self._daemon.channel.send(b"leave")

    def _after_leaving(self) -> Life | None:
        if self._leaving:
            self._tell("left")
            sys.exit(0)
        self._upgrades += 1
        return self._start()

    def _upgrade(self) -> None:
        """Become the newly installed program; it goes on in `resumed`."""
        assert self._held is not None
        log.info("upgrading: the supervisor first")
        daemon = self._daemon
        state = {
            "mountpoint": self._mountpoint, "lock": self._lock, "device": self._held.device,
            "init": self._held.init.hex(), "flags": self._held.flags, "lives": self._lives, "restarts": self._restarts,
            "upgrades": self._upgrades, "passed_on": self._passed_on, "undead": self._undead, "kept": self._state_fd,
            "children": self._children,
            "daemon": None if daemon is None else [
                daemon.pid, daemon.channel.fileno(), sorted(daemon.said), daemon.canary,
            ],
        }  # fmt: skip
        carrier = os.memfd_create("snapfs-upgrade", 0)
        os.write(carrier, json.dumps(state).encode())
        descriptors = [carrier, self._lock, self._held.device, self._state_fd]
        descriptors += [] if daemon is None else [daemon.channel.fileno()]
        for fd in descriptors:
            if fd >= 0:
                os.set_inheritable(fd, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        os.environ[RESUME_VARIABLE] = str(carrier)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    @classmethod
    def resumed(cls, status_path: str) -> Supervisor | None:
        """The supervisor that this process was before an upgrade; None if it was none."""
        carrier = int(os.environ.pop(RESUME_VARIABLE, "-1"))
        if carrier < 0:
            return None
        os.lseek(carrier, 0, os.SEEK_SET)
        with open(carrier, "rb") as file:
            state = json.loads(file.read())
        self = cls(state["mountpoint"], status_path, state["lock"])
        self._take(state, state["device"])
        self._passed_on, self._state_fd = state["passed_on"], state["kept"]
        self._undead, self._children = state["undead"], state["children"]
        for fd in (self._lock, state["device"], self._state_fd):
            if fd >= 0:
                os.set_inheritable(fd, False)
        if state["daemon"] is not None:
            pid, channel, said, canary = state["daemon"]
            sock = socket.socket(fileno=channel)
            os.set_inheritable(channel, False)
            self._daemon = _Daemon(pid, sock, _watch(pid, canary), canary, time.monotonic(), set(said))
        return self

    def _take(self, state: dict[str, Any], device: int) -> None:
        self._held = Held(device, bytes.fromhex(state["init"]), state["flags"])
        self._lives, self._restarts, self._upgrades = state["lives"], state["restarts"], state["upgrades"]

    # -- what the service manager keeps

    def _keep(self) -> None:
        """Have the service manager keep what we hold, if there is one."""
        if self._held is None or "NOTIFY_SOCKET" not in os.environ:
            return
        state = {
            "mountpoint": self._mountpoint, "init": self._held.init.hex(), "flags": self._held.flags,
            "lives": self._lives, "restarts": self._restarts, "upgrades": self._upgrades,
        }  # fmt: skip
        text = json.dumps(state).encode()
        new = self._state_fd < 0
        if new:
            self._state_fd = os.memfd_create("snapfs-state", os.MFD_CLOEXEC)
        os.ftruncate(self._state_fd, 0)
        os.pwrite(self._state_fd, text, 0)
        if new:
            for name, fd in ((DEVICE_NAME, self._held.device), (LOCK_NAME, self._lock), (STATE_NAME, self._state_fd)):
                systemd.store(name, fd)

    @classmethod
    def kept(cls, mountpoint: str, status_path: str) -> Supervisor | None:
        """The supervisor of a mount that the service manager kept alive; None if it kept none, or it has ended."""
        found = systemd.kept()
        if not {DEVICE_NAME, LOCK_NAME, STATE_NAME} <= found.keys():
            return None
        state = json.loads(os.pread(found[STATE_NAME], _MESSAGE_BYTES, 0) or b"{}")
        if state.get("mountpoint") != mountpoint or not is_alive(found[DEVICE_NAME]):
            for name, fd in found.items():
                systemd.forget(name)
                os.close(fd)
            return None
        self = cls(mountpoint, status_path, found[LOCK_NAME])
        self._take(state, found[DEVICE_NAME])
        self._state_fd = found[STATE_NAME]
        self._restarts += 1
        return self

    @property
    def lock(self) -> int:
        return self._lock

    # -- how it is

    def _tell(self, state: str, words: str = "") -> None:
        """Write the status file; what fails is only the telling."""
        facts = {
            "state": state, "supervisor": os.getpid(), "daemon": self._daemon.pid if self._daemon else None,
            "mountpoint": self._mountpoint, "lives": self._lives, "restarts": self._restarts,
            "upgrades": self._upgrades, "gap_s": self._gap_s, "words": words, "time_ns": time.time_ns(),
        }  # fmt: skip
        temporary = f"{self._status_path}.new"
        with contextlib.suppress(OSError):
            with open(temporary, "w") as file:
                json.dump(facts, file)
            os.replace(temporary, self._status_path)


def goes_on() -> bool:
    """Whether this process is to go on with a mount that is there, and not to make one."""
    return RESUME_VARIABLE in os.environ or os.environ.get("LISTEN_PID") == str(os.getpid())


def read_status(volume: str) -> dict[str, Any] | None:
    """What the supervisor of this volume says of itself, or said last; None if there is none."""
    try:
        with open(os.path.join(volume, STATUS_NAME)) as file:
            facts: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return None
    return facts


def is_alive(device: int) -> bool:
    """Whether the connection of this descriptor of /dev/fuse still has a mount."""
    poll = select.poll()
    poll.register(device, select.POLLIN)
    return not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def abort(mountpoint: str, device: int) -> None:
    """End a connection: by the kernel's own means where they are there, and by closing what we have of it."""
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            fields = next(line.split(" ") for line in lines if line.split(" ")[4] == mountpoint)
        minor = fields[2].partition(":")[2]
        with open(f"/sys/fs/fuse/connections/{minor}/abort", "w") as file:
            file.write("1")
    os.close(device)


def _watch(pid: int, canary: int) -> int:
    """A descriptor that is readable when the process is dead. It is our child, and not reaped."""
    with contextlib.suppress(OSError):
        if canary:
            return os.pidfd_open(canary, os.O_EXCL)
    return os.pidfd_open(pid)


def _reap(pid: int, seconds: float) -> int | None:
    """The exit code (negative: the signal) of a child that ends within this time; None if it does not."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return -signal.SIGKILL
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
