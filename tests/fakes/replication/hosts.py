"""Hosts that can be killed: network namespaces, each with a name of its own and a link to the mirror, and no other.

`Site` has a mirror and two hosts. As root they are namespaces, and killing a host ends every process in it and takes
its network away; its disk (a folder) stays. Where that is not possible all of it runs over the loopback, and killing
ends what was started and the mount's processes (`Site.why_not_namespaces` has the reason).

Everything is done by the commands that a user types; `Host.run` is a shell on that host.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replicator.mirror.tokens import Tokens
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.ports import free_port

until = eventually  # its name here before there was one for all tests
ROOT = Path(__file__).resolve().parents[3]
SNAPFS = [sys.executable, "-P", "-m", "snapfs"]
REPLICATOR = [sys.executable, "-P", "-m", "replicator"]
_CLONE_NEWNET = 0x40000000
_NAMED = 'hostname "$0"; exec "$@"'


class FailedError(Exception):
    """A command did not end with 0."""


@functools.cache
def why_not_namespaces() -> str:
    """Empty if hosts can be network namespaces here."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"there is no `{program}` here"
    probe = f"snapfs-probe-{os.getpid()}"
    for command in (["add", probe], ["del", probe]):
        done = subprocess.run(["ip", "netns", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            return f"ip netns {command[0]}: {done.stderr.strip()}"
    return ""


class Host:
    """A machine: a disk (`folder`), a name, and while it is up a network of its own."""

    def __init__(self, name: str, folder: Path, namespace: str, mirror_address: str) -> None:
        self.name, self.folder, self.namespace, self.mirror_address = name, folder, namespace, mirror_address
        self._started: list[subprocess.Popen[str]] = []
        self.mounts: set[Path] = set()
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def command(self, *words: str | Path) -> list[str]:
        plain = [str(word) for word in words]
        if not self.namespace:
            return plain
        return [
            "nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "sh", "-c", _NAMED, self.name, *plain,
        ]  # fmt: skip

    def run(self, *words: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to its end. FailedError shows its output."""
        command = self.command(*words)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env=_environment(), **options
        )
        if check and done.returncode:
            raise FailedError(f"{self.name}$ {' '.join(map(str, words))}: {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, *words: str | Path, log: str = "", **options: Any) -> subprocess.Popen[str]:
        """Run beside everything else."""
        with open(self.folder / (log or "started.log"), "a") as file:
            process = subprocess.Popen(
                self.command(*words), stdout=file, stderr=file, text=True, env=_environment(), **options
            )
        self._started.append(process)
        return process

    def snapfs(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(*SNAPFS, *words, check=check)

    def mount(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`snapfs mount`, of which the last word is the mountpoint."""
        place = Path(words[-1])
        place.mkdir(exist_ok=True)
        self.mounts.add(place)
        return self.snapfs("mount", *words, check=check)

    def umount(self, place: Path) -> None:
        self.snapfs("umount", place)
        self.mounts.discard(place)

    def status(self, place: Path) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((place / ".snapfs" / "status").read_bytes())
        return facts

    def agent(self, volume: Path) -> subprocess.Popen[str]:
        return self.start(*REPLICATOR, "agent", volume, "--listen", "off", log="agent.log")

    def check_lives(self, process: subprocess.Popen[str], what: str, log: str = "started.log") -> None:
        """FailedError with the last words of a process of ours that has ended, though it should be at work."""
        code = process.poll()
        if code is not None:
            lines = (self.folder / log).read_text(errors="replace").strip().splitlines()
            raise FailedError(f"{self.name}: {what} ended with exit code {code}: {' | '.join(lines[-3:]) or 'no word'}")

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
        """End one of the started processes."""
        process.send_signal(number)
        if process in self._started:
            self._started.remove(process)
        return process.wait(PATIENCE_S)

    def kill(self) -> float:
        """All of it is gone at once, but for its disk. When that was (time.time)."""
        pids = self._pids()
        at_s = time.time()
        while pids:  # again, for those that were started by the last of them
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.wait(PATIENCE_S)
            self._started.clear()
            for pid in pids:
                _wait_gone(pid)
            pids = self._pids_of_namespace()
        for place in self.mounts:
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)
        self.mounts.clear()
        if self.namespace:
            subprocess.run(["ip", "netns", "del", self.namespace], check=True)
        return at_s

    def _pids(self) -> list[int]:
        """The supervisors first, lest they start another daemon."""
        found = [self._facts(place) for place in self.mounts]
        pids: list[int] = [facts[name] for facts in found for name in ("supervisor", "pid") if facts.get(name)]
        pids += self._pids_of_namespace()
        return list(dict.fromkeys([*pids, *(process.pid for process in self._started)]))

    def _pids_of_namespace(self) -> list[int]:
        if not self.namespace:
            return []
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        return [int(pid) for pid in done.stdout.split()]

    def _facts(self, place: Path) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return self.status(place)
        return {}


class Site:
    """A mirror and two hosts, `a` and `b`. `close` leaves nothing but the folder."""

    def __init__(self, folder: Path, *, namespaces: bool | None = None) -> None:
        self.folder = folder
        why_not = why_not_namespaces()
        self.separate = not why_not if namespaces is None else namespaces
        self.why_not_namespaces = why_not
        tag = f"snapfs-{os.getpid()}-{id(self) % 9973}"
        self._tag = tag if self.separate else ""
        self.port = 8700 if self.separate else free_port()
        self.mirror_root = folder / "mirror" / "root"
        self.mirror = self._made("mirror", "127.0.0.1")
        self.hosts = [self._made("host-a", "10.211.1.1"), self._made("host-b", "10.211.2.1")]
        self.a, self.b = self.hosts
        self.mirror_root.mkdir(exist_ok=True)
        self.token_file = folder / "token"
        self.token_file.write_text(Tokens(str(self.mirror_root / "tokens.json")).create({"*": "admin"})[1])
        self._serving: subprocess.Popen[str] | None = None
        if self.separate:
            self._add_namespace(self.mirror)
            for host in self.hosts:
                self.plug_in(host)

    def _made(self, name: str, mirror_address: str) -> Host:
        namespace = f"{self._tag}-{name}" if self.separate else ""
        return Host(name, self.folder / name, namespace, mirror_address if self.separate else "127.0.0.1")

    def url(self, host: Host, port: int = 0) -> str:
        """The volume on the mirror, as this host reaches it."""
        return f"http://{host.mirror_address}:{port or self.port}/pg"

    def _add_namespace(self, host: Host) -> None:
        subprocess.run(["ip", "netns", "add", host.namespace], check=True)
        subprocess.run(host.command("ip", "link", "set", "lo", "up"), check=True)

    def plug_in(self, host: Host) -> None:
        """(Re)start a host's machine: empty but for its disk, with a link to the mirror. Nothing without namespaces."""
        if not self.separate:
            return
        self._add_namespace(host)
        number = self.hosts.index(host) + 1
        here, there = f"sf{os.getpid()}a{number}"[-15:], f"sf{os.getpid()}b{number}"[-15:]
        is_there = self.mirror.command("ip", "link", "show", there)  # until the network of its last life is taken down
        eventually(
            lambda: subprocess.run(is_there, check=False, capture_output=True).returncode != 0, "the old link's end"
        )
        link = ["ip", "link", "add", here, "netns", host.namespace, "type", "veth"]
        subprocess.run([*link, "peer", "name", there, "netns", self.mirror.namespace], check=True)
        for end, name, address in ((host, here, 2), (self.mirror, there, 1)):
            end.run("ip", "addr", "add", f"10.211.{number}.{address}/24", "dev", name)
            end.run("ip", "link", "set", name, "up")

    def cut_link(self, host: Host, *, cut: bool = True) -> None:
        """Take the network of a living host away, or give it back. With namespaces only."""
        number = self.hosts.index(host) + 1
        host.run("ip", "link", "set", f"sf{os.getpid()}a{number}"[-15:], "down" if cut else "up")

    def start_mirror(self) -> None:
        listen = f"{'0.0.0.0' if self.separate else '127.0.0.1'}:{self.port}"
        self._serving = self.mirror.start(*REPLICATOR, "serve", "--root", self.mirror_root, "--listen", listen)
        check = f"import socket; socket.create_connection(('127.0.0.1', {self.port}), 1).close()"
        eventually(lambda: self.mirror.run(sys.executable, "-c", check, check=False).returncode == 0, "the mirror")

    def kill_mirror(self, number: int = signal.SIGKILL) -> None:
        if self._serving is not None:
            self.mirror.end(self._serving, number)
            self._serving = None

    def in_mirrors_network(self) -> None:
        """Move the calling thread there."""
        if self.separate:
            fd = os.open(f"/run/netns/{self.mirror.namespace}", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            finally:
                os.close(fd)

    def close(self) -> None:
        for host in (*self.hosts, self.mirror):
            with contextlib.suppress(FailedError):
                for place in list(host.mounts):
                    host.umount(place)
            if not host.namespace or os.path.exists(f"/run/netns/{host.namespace}"):
                host.kill()


@contextlib.contextmanager
def site(folder: Path, *, namespaces: bool | None = None) -> Iterator[Site]:
    made = Site(folder, namespaces=namespaces)
    try:
        yield made
    finally:
        made.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}


def _wait_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        eventually(
            lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX", f"the end of {pid}"
        )
