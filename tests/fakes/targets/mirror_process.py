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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from replicator.mirror.tokens import Tokens
from snapfs.store.log.snapshot_records import SnapshotRecord
from snapfs.store.protocol import message_codec, messages, number_runs, object_stream, read_objects, wire, wire_fields
from snapfs.store.protocol.refusals import RefusedError
from tests.fakes.histories.history import IDENTITY
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.ports import free_port

wait_until = eventually  # its name here before there was one for all tests
CREATE = messages.CreateVolume(IDENTITY.volume_id, f"{IDENTITY.seed:016x}")
REPLICATOR = [sys.executable, "-P", "-m", "replicator"]


class MirrorProcess:
    """Serves `root`; started and killed at will, on one port."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root, self._options = root, options
        root.mkdir(exist_ok=True)
        self.admin = Tokens(str(root / "tokens.json")).create({"*": "admin"})[1]
        self.port = free_port()
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
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
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
        code = process.wait(PATIENCE_S)
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
        self.generation, self.writer_id = 0, "host-a"
        self.headers: dict[str, str] = {}
        """Of the last answer."""

    def connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE_S, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)

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
            raise message_codec.decode_problem(answer.status, data)
        return data

    def standard_headers(self) -> dict[str, str]:
        fence = {wire.GENERATION_HEADER: str(self.generation), wire.WRITER_HEADER: self.writer_id}
        return {"Authorization": f"Bearer {self._token}", wire.PROTOCOL_HEADER: "1", **fence}

    def create(self, volume: str = "pg", wanted: messages.CreateVolume = CREATE) -> messages.VolumeState:
        return message_codec.decode(
            self.request("PUT", wire.volume_path(volume), message_codec.encode(wanted)), messages.VolumeState
        )

    def claim(self, generation: int, writer_id: str = "host-a") -> messages.VolumeState:
        body = message_codec.encode(messages.Claim(generation, writer_id))
        state = message_codec.decode(self.request("POST", wire.volume_path("pg", "claim"), body), messages.VolumeState)
        self.generation, self.writer_id = generation, writer_id
        return state

    def state(self) -> messages.VolumeState:
        return message_codec.decode(self.request("GET", wire.volume_path("pg")), messages.VolumeState)

    def snapshots(self, query: str = "") -> messages.SnapshotList:
        return message_codec.decode(
            self.request("GET", wire.volume_path("pg", "snapshots") + query), messages.SnapshotList
        )

    def lacks(self, numbers: Iterable[int]) -> list[int]:
        data = self.request(
            "POST", wire.volume_path("pg", "lacks"), number_runs.pack_runs(number_runs.runs_of(numbers))
        )
        runs = number_runs.unpack_runs(data, wire.MAX_LACKS_NUMBERS)
        return [number for first, last in runs for number in range(first, last + 1)]

    def put(self, data: bytes | Iterable[bytes]) -> messages.PartReceipt:
        return message_codec.decode(self.request("POST", wire.volume_path("pg", "parts"), data), messages.PartReceipt)

    def commit(self, records: Iterable[SnapshotRecord], *, history: bool = False) -> messages.CommitReceipt:
        body = message_codec.encode(messages.Commit([wire_fields.encode_record(record) for record in records], history))
        return message_codec.decode(
            self.request("POST", wire.volume_path("pg", "commit"), body), messages.CommitReceipt
        )

    def objects(self, wanted: read_objects.ReadObjects) -> tuple[object_stream.StreamParser, list[object_stream.Item]]:
        return parsed(self.request("POST", wire.volume_path("pg", "objects"), message_codec.encode(wanted)))

    def tables(self, ref: str, limit: int = 1 << 20) -> tuple[object_stream.StreamParser, list[object_stream.Item]]:
        path = wire.volume_path("pg", "snapshots", quote(ref, safe=""), "tables")
        return parsed(self.request("GET", f"{path}?limit={limit}"))


def parsed(data: bytes) -> tuple[object_stream.StreamParser, list[object_stream.Item]]:
    parser = object_stream.StreamParser()
    return parser, list(parser.feed(data))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


__all__ = ["CREATE", "Client", "MirrorProcess", "RefusedError", "parsed", "resident_bytes", "urlsplit"]
