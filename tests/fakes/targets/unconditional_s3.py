"""S3 servers that ignore conditions, which a target must refuse: s3rver of npm, and one of ours.

Ours are relays before a real server. `DeafServer` takes the conditions out of puts and lets all else through; so it can
be deaf to one of the two alone, or from some time on. `HastyServer` looks first whether the condition holds, and
writes afterwards: it refuses all it must, but of two puts at the same time it does both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.bad_link import BadLink
from tests.fakes.targets.s3_server import s3_server

CONDITIONS = ("If-None-Match", "If-Match")
S3RVER = "s3rver@3.7.1"


class DeafServer(BadLink):
    """Relays to the server at 127.0.0.1:`port`, without these headers where something is put."""

    def __init__(self, port: int, deaf_to: tuple[str, ...] = CONDITIONS) -> None:
        super().__init__(port, seed=1)
        self.deaf_to = deaf_to


class HastyServer(DeafServer):
    """Looks whether the condition of a put holds, and writes when another put has looked as well.

    The first ALONE of them come one after the other, as conditional_puts.py has it, and wait for none.
    """

    ALONE = 2

    def __init__(self, port: int, deaf_to: tuple[str, ...] = CONDITIONS) -> None:
        super().__init__(port, deaf_to)
        self._looks = 0
        self._first_of_two: asyncio.Event | None = None

    async def _partner(self) -> None:
        self._looks += 1
        if self._looks <= self.ALONE:
            return
        if self._first_of_two is not None:
            self._first_of_two.set()
            self._first_of_two = None
            return
        self._first_of_two = mine = asyncio.Event()
        await asyncio.wait_for(mine.wait(), PATIENCE_S)

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        wanted = [request.headers.get(name) for name in CONDITIONS]
        if request.method != "PUT" or not any(wanted):
            return await super()._relay(request)
        key = {"Authorization": request.headers["Authorization"]}  # without one the server would show nothing
        async with self._session.head(f"{self._upstream}{request.rel_url}", headers=key) as found:
            there = found.headers.get("ETag") if found.status == 200 else None
        holds = there is None if wanted[0] else there == wanted[1]
        if not holds:
            return web.Response(status=412, text="<Error><Code>PreconditionFailed</Code></Error>")
        await self._partner()
        return await super()._relay(request)


@contextlib.contextmanager
def s3rver(folder: Path) -> Iterator[str]:
    """The endpoint of the server from npm. Skips the test where it does not install."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm and node are not here: s3rver cannot be run")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", S3RVER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {S3RVER} within 120 s")
    if done.returncode:
        pytest.skip(f"npm does not install {S3RVER}: {done.stderr.strip()[-200:]}")
    os.environ["SNAPFS_S3RVER"] = str(folder / "node_modules" / "s3rver")
    with s3_server("s3rver") as endpoint:
        yield endpoint
