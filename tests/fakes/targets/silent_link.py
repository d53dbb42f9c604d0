"""A link to a server that falls silent: after so many bytes it answers no more, and closes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

from tests.fakes.patience import PATIENCE_S

_PIECE_BYTES = 16 << 10


class SilentLink:
    """Relays to 127.0.0.1:`port`. Its own port is `self.port`."""

    def __init__(self, port: int, passes: int, silenced: Callable[[], None] = lambda: None) -> None:
        """`passes`: so many bytes of the server's answers get through; `silenced` is called once, when they have."""
        self._upstream, self._left, self._silenced = port, passes, silenced
        self.port = 0
        self._ready, self._done = threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="silent link")

    @contextlib.contextmanager
    def running(self) -> Iterator[SilentLink]:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        try:
            yield self
        finally:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE_S)

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tasks = set[asyncio.Task[None]]()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._relay(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection("127.0.0.1", self._upstream)
        try:
            await asyncio.gather(self._pass(reader, here, None), self._pass(there, writer, self._count))
        except ConnectionError:
            pass
        finally:
            here.close()
            writer.close()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, count: Callable[[int], bool] | None
    ) -> None:
        while data := await source.read(_PIECE_BYTES):
            if count is not None and not count(len(data)):
                await asyncio.Event().wait()  # for ever
            sink.write(data)
            await sink.drain()
        sink.write_eof()

    def _count(self, size: int) -> bool:
        if self._left > 0 >= self._left - size:
            self._silenced()
        self._left -= size
        return self._left > 0
