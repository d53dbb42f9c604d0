"""A mirror as a process of its own, and a plain client for it."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from replicator.security import Tokens
from snapfs.store import stream, wire
from snapfs.store.records import SnapshotRecord
from snapfs.store.wire import RefusedError
from tests.fakes.history import IDENTITY

CREATE = wire.CreateVolume(IDENTITY.volume_id, f"{IDENTITY.seed:016x}")
REPLICATOR = [sys.executable, "-m", "replicator.cli"]


class MirrorProcess:
    """Serves `root`; started and killed at will, on one port."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root, self._options = root, options
        root.mkdir(exist_ok=True)
        self.admin = Tokens(str(root / "tokens.json")).create({"*": "admin"})[1]
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Until it listens."""
        command = [*REPLICATOR, "serve", "--root", str(self.root), "--listen", f"127.0.0.1:{self.port}", *self._options]
        with open(self.root.parent / "mirror.log", "a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 60)
        line = self._process.stdout.readline() if ready else ""
        assert line.startswith("listening on "), f"{line} {(self.root.parent / 'mirror.log').read_text()}"
        self.port = int(line.rstrip().rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        code = process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def client(self, token: str | None = None) -> Client:
        return Client(self.port, self.admin if token is None else token, self.tls)

    def log(self) -> list[dict[str, Any]]:
        """What it logged: a JSON object a line."""
        return [json.loads(line) for line in (self.root.parent / "mirror.log").read_text().splitlines()]


class Client:
    """One request, one connection. A refusal raises RefusedError."""

    def __init__(self, port: int, token: str, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._token, self._tls = port, token, tls
        self.generation, self.holder = 0, "host-a"
        self.headers: dict[str, str] = {}
        """Of the last answer."""

    def connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=60, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        connection = self.connection()
        try:
            connection.request(method, path, body, {**self.standard_headers(), **(headers or {})})
            answer = connection.getresponse()
            self.headers = dict(answer.getheaders())
            data = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise wire.decode_problem(answer.status, data)
        return data

    def standard_headers(self) -> dict[str, str]:
        fence = {wire.GENERATION_HEADER: str(self.generation), wire.HOLDER_HEADER: self.holder}
        return {"Authorization": f"Bearer {self._token}", wire.PROTOCOL_HEADER: "1", **fence}

    def create(self, volume: str = "pg", wanted: wire.CreateVolume = CREATE) -> wire.VolumeState:
        return wire.decode(self.request("PUT", wire.volume_path(volume), wire.encode(wanted)), wire.VolumeState)

    def claim(self, generation: int, holder: str = "host-a") -> wire.VolumeState:
        body = wire.encode(wire.Claim(generation, holder))
        state = wire.decode(self.request("POST", wire.volume_path("pg", "claim"), body), wire.VolumeState)
        self.generation, self.holder = generation, holder
        return state

    def state(self) -> wire.VolumeState:
        return wire.decode(self.request("GET", wire.volume_path("pg")), wire.VolumeState)

    def snapshots(self, query: str = "") -> wire.SnapshotList:
        return wire.decode(self.request("GET", wire.volume_path("pg", "snapshots") + query), wire.SnapshotList)

    def lacks(self, numbers: Iterable[int]) -> list[int]:
        data = self.request("POST", wire.volume_path("pg", "lacks"), wire.pack_runs(wire.runs_of(numbers)))
        runs = wire.unpack_runs(data, wire.MAX_LACKS_NUMBERS)
        return [number for first, last in runs for number in range(first, last + 1)]

    def put(self, data: bytes | Iterable[bytes]) -> wire.PartReceipt:
        return wire.decode(self.request("POST", wire.volume_path("pg", "parts"), data), wire.PartReceipt)

    def commit(self, records: Iterable[SnapshotRecord], *, history: bool = False) -> wire.CommitReceipt:
        body = wire.encode(wire.Commit([wire.encode_record(record) for record in records], history))
        return wire.decode(self.request("POST", wire.volume_path("pg", "commit"), body), wire.CommitReceipt)

    def objects(self, wanted: wire.ReadObjects) -> tuple[stream.StreamParser, list[stream.Item]]:
        return parsed(self.request("POST", wire.volume_path("pg", "objects"), wire.encode(wanted)))

    def tables(self, ref: str, limit: int = 1 << 20) -> tuple[stream.StreamParser, list[stream.Item]]:
        path = wire.volume_path("pg", "snapshots", quote(ref, safe=""), "tables")
        return parsed(self.request("GET", f"{path}?limit={limit}"))


def parsed(data: bytes) -> tuple[stream.StreamParser, list[stream.Item]]:
    parser = stream.StreamParser()
    return parser, list(parser.feed(data))


def wait_until(what: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


__all__ = ["CREATE", "Client", "MirrorProcess", "RefusedError", "parsed", "resident_bytes", "urlsplit", "wait_until"]
