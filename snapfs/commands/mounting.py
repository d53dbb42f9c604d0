"""Mounting and unmounting.

`mount` starts the daemon as a process of its own, which tells through a pipe that the mount answers, or in one line of
JSON why it does not; only then does the command return. The daemon's later words go to VOLUME/daemon.log. Its process
is started first of all, for that takes longest: it imports what it needs while the volume is taken over or looked at,
and touches nothing before it is told to go.

Invariants:
1. `mount` succeeds only when the mount answers. When it fails, nothing is mounted and no daemon is left.
2. `umount` returns when the daemon has ended, so that the volume is free for whoever comes next.
3. With a command under the mount, the mount outlives neither the command nor us, whatever signal comes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import msgspec

import snapfs
from snapfs import supervisor, systemd
from snapfs.blocks import Disk
from snapfs.commands import output
from snapfs.commands.apart import apart
from snapfs.commands.place import daemon_pid, locate, mount_entries
from snapfs.commands.store_options import store_option
from snapfs.config import Config, override
from snapfs.errors import EXIT_BUG, EXIT_CORRUPT, BusyError, SnapfsError, UserError
from snapfs.fuse import mounting, router
from snapfs.supervisor import Supervisor
from snapfs.volume import Volume, explained

if TYPE_CHECKING:
    from snapfs.transfer.remount import RemountReport
    from snapfs.transfer.standby import TakeoverReport

_LOG_BYTES = 1 << 20
_BUSY_TRIES_S = 5.0
_UPGRADE_POLL_S = 0.01
_LEAVE_PATIENCE_S = 60.0
_GENERIC = (
    "rw defaults auto noauto user users nouser owner group nofail _netdev exec suid dev async atime noatime diratime "
    "nodiratime relatime norelatime strictatime lazytime nolazytime default_permissions loud silent mand nomand"
)
_IGNORED = frozenset(_GENERIC.split())
"""Words of mount(8) and fstab(5) that ask for nothing, or for what always holds here."""


@dataclass(slots=True)
class Wishes:
    """What ``-o`` asked for: settings by name, and what is the kernel's."""

    settings: dict[str, str] = field(default_factory=dict)
    nonempty: bool = False
    restrictions: set[str] = field(default_factory=set)


def parse_options(texts: tuple[str, ...]) -> Wishes:
    """Read the values of ``-o``, as mount(8) and fstab(5) write them. UserError for what is not known."""
    wishes = Wishes()
    for word in (word for text in texts for word in text.split(",") if word):
        key, equals, value = word.partition("=")
        if (
            word in _IGNORED
            or key.startswith(("x-", "X-"))
            or key in {"comment", "uhelper", "helper", "fsname", "subtype"}
        ):
            continue
        if word in {"allow_other", "noallow_other"}:
            wishes.settings["mount.allow_other"] = "true" if word == "allow_other" else "false"
        elif word in {"nodev", "nosuid", "noexec"}:
            wishes.restrictions.add(word)
        elif word == "nonempty":
            wishes.nonempty = True
        elif "." in key and equals:
            wishes.settings[key] = value
        elif word == "ro":
            raise UserError("a volume is mounted for writing; its snapshots are there to be read, in .snapfs/snapshots")
        else:
            raise UserError(f"unknown mount option {word}: settings are named like snapshots.every=10s")
    return wishes


@click.command("mount", short_help="Mount a volume; create it on first use.")
@click.argument("volume")
@click.argument("mountpoint")
@click.argument("command", metavar="[-- CMD...]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "options", "-o", "--options", multiple=True, help="Mount options and settings: allow_other,snapshots.every=10s"
)
@click.option("--foreground", "-f", is_flag=True, help="Do not go to the background; log to stderr.")
@click.option(
    "sources", "--from", multiple=True, metavar="PLACE",
    help="Begin VOLUME with the newest snapshot of a mirror (https://MIRROR:8700/NAME), of an object store "
    "(s3://BUCKET/PREFIX) or of another volume's folder.",
)
@click.option("--token-file", type=click.Path(dir_okay=False), help="Of --from: holds the mirror's token.")
@store_option
@click.option("--ca", type=click.Path(dir_okay=False), help="Of --from: certificates to trust, not the system's.")
@click.option("--certificate", type=click.Path(dir_okay=False), help="Of --from: our own, if the mirror asks for one.")
@click.option("--certificate-key", type=click.Path(dir_okay=False), help="The key of that. Default: in the same file.")
@click.option("--key-file", type=click.Path(dir_okay=False), help="Of --from: the key of an encrypted volume.")
@click.option("--key-command", metavar="COMMAND", help="Of --from: what prints that key.")
@click.option("--force", is_flag=True, help="With --from: also where the last writer cannot be fenced off.")
@click.option("--take-over", is_flag=True, help="Be the writer of VOLUME, though another host is: fence that one off.")
@click.option("--ready-fd", type=int, default=-1, hidden=True)
@click.option("--go-fd", type=int, default=-1, hidden=True)
def mount(
    volume: str,
    mountpoint: str,
    command: tuple[str, ...],
    options: tuple[str, ...],
    foreground: bool,
    sources: tuple[str, ...],
    token_file: str | None,
    store_options: dict[str, str],
    ca: str | None,
    certificate: str | None,
    certificate_key: str | None,
    key_file: str | None,
    key_command: str | None,
    force: bool,
    take_over: bool,
    ready_fd: int,
    go_fd: int,
) -> None:
    """Mount VOLUME at MOUNTPOINT. A volume that does not exist is created.

    With --from it is mounted and writable at once, and fetches what it does not have when it is asked for, and the rest
    behind. Several places are tried in turn; what is on this host is never fetched from another.

    Returns when the mount answers. With a CMD, runs it with the mount in place, unmounts when it ends, and exits with
    its exit code (128 + n if signal n ended it).
    """
    wishes = parse_options(options)
    if foreground and command:
        raise click.UsageError("--foreground and a command exclude each other.")
    files = {"token_file": token_file, "ca": ca, "certificate": certificate, "key": certificate_key}
    files = {name: path and os.path.abspath(path) for name, path in (files | {"key_file": key_file}).items()}
    access: dict[str, Any] = {**files, "key_command": key_command, "options": store_options}
    named = [each if "://" in each else os.path.abspath(each) for each in sources]

    begins = bool(sources) or os.path.exists(os.path.join(volume, "standby.json"))

    def before() -> None:
        if begins:
            _take_over(volume, mountpoint, wishes, named, access, force)
        if take_over:
            _claim_anew(volume)

    if foreground:
        if (begins or take_over) and go_fd < 0 and not supervisor.goes_on():
            apart(before)  # from here on we fork
        return _serve(volume, mountpoint, wishes, ready_fd, go_fd)
    with _Starting(os.path.realpath(volume), os.path.abspath(mountpoint), options) as starting:
        before()
        _prepare(volume, mountpoint, wishes)
        recovered = starting.go()
    for line in recovered:
        output.remark(f"recovered: {line}")
    if command:
        sys.exit(_run_under(mountpoint, command))
    return None


def _take_over(
    volume: str, mountpoint: str, wishes: Wishes, places: list[str], access: dict[str, Any], force: bool
) -> None:
    """Make the volume of what these places have, or of a standby, unless that was done before."""
    mounting.check_fuse()
    mounting.check_mountpoint(mountpoint, nonempty=wishes.nonempty)
    report: RemountReport | TakeoverReport | None
    if os.path.exists(os.path.join(volume, "standby.json")):
        from snapfs.transfer import standby

        report = standby.take_over(volume, Disk(), force=force)
    else:
        from snapfs.transfer.remote import Access
        from snapfs.transfer.remount import remount

        report = remount(volume, places, Disk(), access=Access(**access), force=force)
    for line in report.lines() if report is not None else ():
        output.remark(line)


def _claim_anew(volume: str) -> None:
    """Make this host the writer of its own volume again."""
    from snapfs.transfer import claiming

    generation = claiming.take_over(Volume.open(volume, Disk()), Disk())
    output.remark(f"generation {generation} begins: this host is the writer, and whoever was is fenced off")


def _prepare(volume: str, mountpoint: str, wishes: Wishes) -> Volume:
    """Everything that can be found wrong before a daemon is started; creates the volume if there is none."""
    mounting.check_fuse()
    if mounting.mounted_type(mountpoint) == mounting.FUSE_TYPE and mounting.state_of(mountpoint) is mounting.State.DEAD:
        output.remark(f"{mountpoint}: the daemon of the last mount died; clearing its mountpoint")
    mounting.check_mountpoint(mountpoint, nonempty=wishes.nonempty)
    for path in (os.path.abspath(volume), os.path.abspath(mountpoint)):
        if not _is_utf8(path):  # it is told in the lock, the status and the log
            raise UserError(f"{output.printable(path)} cannot be used, as it is not UTF-8: choose another path")
    inside, outside = os.path.realpath(volume), os.path.realpath(mountpoint)
    if f"{outside}/".startswith(f"{inside}/") or f"{inside}/".startswith(f"{outside}/"):
        raise UserError(f"{volume} and {mountpoint} must not lie within each other")
    if not Volume.exists(volume):
        override(Config(), wishes.settings)  # nothing is created for a wish that cannot be
        Volume.create(volume, Disk())
        output.remark(f"created a new volume at {volume}")
    opened = Volume.open(volume, Disk())
    if opened.opaque:
        raise UserError(f"{volume} is what a target has of an encrypted volume: name it with --from, and its key")
    opened.configure(wishes.settings)
    return opened


def _is_utf8(path: str) -> bool:
    with contextlib.suppress(UnicodeEncodeError):
        return bool(path.encode())
    return False


def _serve(volume: str, mountpoint: str, wishes: Wishes, ready_fd: int, go_fd: int) -> None:
    """Be the daemon, until the mount is gone. With `go_fd` not before a byte comes from there."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)sZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    try:
        from snapfs import daemon

        if go_fd >= 0 and not supervisor.goes_on():
            _wait_to_go(go_fd, volume)
        place, status_path = os.path.abspath(mountpoint), os.path.join(os.path.abspath(volume), supervisor.STATUS_NAME)
        holder = Supervisor.resumed(status_path) or Supervisor.kept(place, status_path)
        if holder is not None:
            opened, ready_fd = Volume.open(volume, Disk()), -1
            opened.configure(wishes.settings)
            opened.take_lock(holder.lock, f"mounted at {place}")
        else:
            opened = _prepare(volume, mountpoint, wishes)
            if router.why_not() is None:
                opened.lock(f"mounted at {place}")
                holder = Supervisor(place, status_path, opened.lock_fd)
                holder.after_start = lambda: _close(ready_fd)
        life = None if holder is None else holder.run()
        if life is not None and life.number:
            ready_fd = -1
        request = daemon.MountRequest(
            opened, place, nonempty=wishes.nonempty, restrictions=frozenset(wishes.restrictions)
        )
        daemon.run(request, lambda recovered: _tell(ready_fd, {"recovered": recovered}), life)
    except SnapfsError as error:
        _tell(ready_fd, {"error": str(error), "exit_code": error.exit_code})
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _tell(ready_fd, {"error": f"internal error: {error!r}", "exit_code": EXIT_BUG})
            raise
        full = UserError(f"{volume}: no space is left on its disk: make room there first")
        _tell(ready_fd, {"error": str(full), "exit_code": full.exit_code})
        raise full from None
    except Exception as error:
        _tell(ready_fd, {"error": f"internal error: {error!r}", "exit_code": EXIT_BUG})
        raise


def _speak_to(log: int) -> None:
    for fd in (1, 2):
        os.dup2(log, fd)


def _wait_to_go(go_fd: int, volume: str) -> None:
    """Return when the volume may be touched, with VOLUME/daemon.log for what is said; end if it never may."""
    if not os.read(go_fd, 1):
        os._exit(0)
    os.close(go_fd)
    with open(os.devnull, "wb") as nowhere:  # where there can be no log, whoever waits for us says why
        _speak_to(nowhere.fileno())
    with _log(volume) as log:
        _speak_to(log)


def _close(ready_fd: int) -> None:
    """The supervisor has nothing to tell. What it holds open would hide the death of a daemon that has."""
    with contextlib.suppress(OSError):
        if ready_fd >= 0:
            os.close(ready_fd)


def _tell(ready_fd: int, facts: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        if ready_fd >= 0:
            os.write(ready_fd, msgspec.json.encode(facts) + b"\n")
            os.close(ready_fd)


class _Starting:
    """The daemon's process, from the first moment. Use in a ``with``: what is not told to go ends with it."""

    def __init__(self, volume: str, mountpoint: str, options: tuple[str, ...]) -> None:
        self._volume, self._mountpoint = volume, mountpoint
        self._heard, told = os.pipe()
        go, self._go = os.pipe()
        arguments = ["mount", "--foreground", f"--ready-fd={told}", f"--go-fd={go}", *(f"-o{text}" for text in options)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "snapfs.cli", *arguments, "--", volume, mountpoint],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", pass_fds=[told, go],
                start_new_session=True, env={**os.environ, "PYTHONPATH": _python_path()},
            )  # fmt: skip
        finally:
            os.close(told)
            os.close(go)

    def __enter__(self) -> _Starting:
        return self

    def go(self) -> list[str]:
        """Wait until the mount answers; what the daemon had to recover. SnapfsError with its own line and exit code."""
        with contextlib.suppress(BrokenPipeError):  # it has died; what it said is still to be heard
            os.write(self._go, b"g")
        with open(self._heard, "rb", closefd=False) as pipe:
            answer = pipe.readline()
        facts: dict[str, Any] = (
            msgspec.json.decode(answer) if answer.strip() else {"error": "it died", "exit_code": EXIT_BUG}
        )
        if "error" in facts:
            self._process.wait()
            raise _failure(facts["error"], facts["exit_code"], self._volume)
        os.stat(os.path.join(self._mountpoint, ".snapfs"))
        self._process.returncode = 0  # it is on its own now; without this, Popen warns of it
        recovered: list[str] = facts.get("recovered", [])
        return recovered

    def __exit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            self._process.wait()
        os.close(self._heard)
        os.close(self._go)


def _failure(words: str, exit_code: int, volume: str) -> SnapfsError:
    """Why there is no mount, and where to look next."""
    if exit_code == EXIT_CORRUPT:
        words += f"; `snapfs doctor {volume}` says what can be done"
    elif exit_code == EXIT_BUG:
        words = f"the daemon failed: {words}; see {volume}/daemon.log"
    failure = SnapfsError(words)
    failure.exit_code = exit_code
    return failure


def _python_path() -> str:
    """The daemon finds this package where we did, and nothing in the folder it is started from."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(snapfs.__file__)))
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextlib.contextmanager
def _log(volume: str) -> Iterator[int]:
    """VOLUME/daemon.log for appending; what it held before is moved aside when it is long."""
    path = os.path.join(volume, "daemon.log")
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(path) > _LOG_BYTES:
            os.replace(path, f"{path}.old")
    with explained(volume, "write its daemon.log"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _run_under(mountpoint: str, command: tuple[str, ...]) -> int:
    """Run `command` and unmount when it ends; its exit code. SIGTERM and SIGHUP are passed on to it."""
    try:
        code = _run(command)
    finally:
        _unmount_when_idle(mountpoint)
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


def _unmount_when_idle(mountpoint: str) -> None:
    """Unmount; lazily and with a remark if something that the command left behind still holds on."""
    deadline = time.monotonic() + _BUSY_TRIES_S
    while True:
        try:
            return _unmount_and_wait(mountpoint, lazy=False)
        except BusyError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    output.remark(f"{mountpoint} is still in use: it goes when its last user does")
    return _unmount_and_wait(mountpoint, lazy=True)


@click.command("umount", short_help="Unmount and wait for the daemon.")
@click.argument("mountpoint")
@click.option(
    "--lazy", "-l", is_flag=True, help="Even while in use: it disappears at once and ends with its last user."
)
@click.option("--unless-restarting", metavar="UNIT", help="Leave the mount to the next start if systemd restarts UNIT.")
def umount(mountpoint: str, lazy: bool, unless_restarting: str | None) -> None:
    """Unmount MOUNTPOINT and wait until its daemon has ended."""
    if unless_restarting is not None and _leave_to_next_start(unless_restarting, mountpoint):
        return
    entry = mounting.mounted_type(mountpoint)
    if entry is None:
        mounted = locate(mountpoint).mountpoint if Volume.exists(mountpoint) else None
        if mounted is None:
            raise UserError(f"{mountpoint} is not mounted")
        mountpoint = mounted
    elif entry != mounting.FUSE_TYPE:
        raise UserError(f"{mountpoint} is a mountpoint of something else ({entry}): use umount")
    try:
        _unmount_and_wait(mountpoint, lazy=lazy)
    except BusyError:
        users = ", ".join(_users(mountpoint)) or "something"
        raise BusyError(f"{mountpoint} is in use by {users}: stop it first, or use --lazy") from None


def _leave_to_next_start(unit: str, mountpoint: str) -> bool:
    """If the unit is being restarted, have the supervisor end without an unmount; whether it did."""
    if not systemd.is_restarting(unit):
        return False
    place = os.path.abspath(mountpoint)
    volume = next((entry.volume for entry in reversed(mount_entries()) if entry.mountpoint == place), None)
    facts = None if volume is None else supervisor.read_status(volume)
    if facts is None or volume is None or facts["supervisor"] != daemon_pid(volume):
        return False
    with _process(facts["supervisor"]) as ended:
        os.kill(facts["supervisor"], signal.SIGUSR1)
        return ended(_LEAVE_PATIENCE_S)


def _unmount_and_wait(mountpoint: str, *, lazy: bool) -> None:
    volume = next((e.volume for e in reversed(mount_entries()) if os.path.abspath(mountpoint) == e.mountpoint), None)
    pid = daemon_pid(volume) if volume else None
    with _process(pid) as ended:
        mounting.unmount(mountpoint, lazy=lazy)
        if not lazy and not ended(1.0):
            output.remark("waiting for the daemon to end")
            ended(None)


@contextlib.contextmanager
def _process(pid: int | None) -> Iterator[Callable[[float | None], bool]]:
    """A function that waits for the end of the process (seconds; None: as long as it takes); whether it has come."""
    try:
        fd = os.pidfd_open(pid) if pid is not None and pid != os.getpid() else -1
    except OSError:
        fd = -1
    if fd < 0:
        yield lambda _seconds: True
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        yield lambda seconds: bool(poll.poll(None if seconds is None else seconds * 1000))
    finally:
        os.close(fd)


def _users(mountpoint: str) -> list[str]:
    """Processes with something open below `mountpoint`, as far as we may see: ``postgres (812)``."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", *(e.path for e in os.scandir(f"/proc/{pid}/fd"))]
            if any(_leads_into(link, mountpoint) for link in links):
                with open(f"/proc/{pid}/comm") as name:
                    found.append(f"{name.read().strip()} ({pid})")
    return found[:5]


def _leads_into(link: str, mountpoint: str) -> bool:
    try:
        return f"{os.readlink(link)}/".startswith(f"{os.path.abspath(mountpoint)}/")
    except OSError:
        return False


@click.command("upgrade", short_help="Let the installed snapfs take over a mount.")
@click.argument("mountpoint")
@output.json_option
def upgrade(mountpoint: str, as_json: bool) -> None:
    """Swap the daemon of MOUNTPOINT for one of the snapfs that is installed now, while the mount stays in use.

    Applications see no error; what they ask for meanwhile waits. Returns when the new daemon answers.
    """
    place = os.path.abspath(mountpoint)
    volume = next((entry.volume for entry in reversed(mount_entries()) if entry.mountpoint == place), None)
    if volume is None:
        raise UserError(f"{mountpoint} is not a snapfs mount")
    before = supervisor.read_status(volume)
    if before is None or before["supervisor"] != daemon_pid(volume):
        raise UserError(f"{mountpoint} has no supervisor that could swap its daemon: unmount it and mount it again")
    _check_installed(volume)
    try:
        os.kill(before["supervisor"], signal.SIGUSR2)
    except PermissionError:
        raise UserError(f"{mountpoint}: only its owner and root may upgrade it") from None
    after = _wait_for_upgrade(volume, before)
    if as_json:
        return output.emit_json({key: after[key] for key in ("supervisor", "daemon", "upgrades", "gap_s")})
    return click.echo(
        f"process {after['daemon']} (snapfs {snapfs.__version__}) took over from process {before['daemon']}: "
        f"the mount was unanswered for {output.seconds(after['gap_s'])}"
    )


def _check_installed(volume: str) -> None:
    """What cannot even be started, or cannot read the volume's settings, must not take over. UserError."""
    try:
        import snapfs.daemon  # noqa: F401
    except Exception as failure:
        raise UserError(f"the installed snapfs cannot be started, nothing was changed: {failure!r}") from None
    Volume.open(volume, Disk())


def _wait_for_upgrade(volume: str, before: dict[str, Any]) -> dict[str, Any]:
    """What the supervisor says when the new daemon answers. SnapfsError if it is gone or gives up."""
    with _process(before["supervisor"]) as ended:
        while not ended(_UPGRADE_POLL_S):
            facts = supervisor.read_status(volume)
            if facts is not None and facts["upgrades"] > before["upgrades"] and facts["state"] == "serving":
                return facts
    raise SnapfsError(f"the upgrade failed: see {volume}/daemon.log")


COMMANDS = (mount, umount, upgrade)
