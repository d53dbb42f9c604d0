"""A real S3 server over HTTP for tests: moto's, in a process of its own, with a bucket.

It was chosen among what installs from the package registries because it does what the head of an object-store target
rests on: puts on condition (If-None-Match, If-Match), multipart uploads, ranges, checksums. (s3rver of npm knows no
conditional puts; Ceph's gateway of apt needs a whole cluster.) It keeps everything in memory and checks no signatures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import obstore
from obstore.store import MemoryStore

BUCKET = "history"
OPTIONS = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1", "allow_http": "true"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server with an empty bucket BUCKET, for the time of the block."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _make_bucket(server, endpoint)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def _make_bucket(server: subprocess.Popen[bytes], endpoint: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the S3 server ended"
        assert time.monotonic() < deadline, "the S3 server does not answer"
        with contextlib.suppress(OSError):
            request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
            with urllib.request.urlopen(request, timeout=10):
                return
        time.sleep(0.05)


def start_obstore() -> None:
    """Let obstore open what it keeps for the life of the process, so that no test seems to leak it."""

    async def ask() -> None:
        await obstore.put_async(MemoryStore(), "x", b"")

    asyncio.run(ask())
