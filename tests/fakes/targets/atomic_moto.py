"""moto's server, which does one put after the other. Run as a program: PORT.

moto alone checks the condition of a put and stores the object in two steps, in threads: of two puts at the same time
one in some eighty was a second winner (measured). No target may be on such a store, and conditional_puts.py finds it
out by chance. Bodies are read before the lock is taken: a slow client holds up nobody.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class AtomicPuts:
    """A WSGI application before another one, which gets one PUT at a time."""

    def __init__(self, inner: Callable[[dict[str, Any], Any], Iterable[bytes]]) -> None:
        self._inner, self._lock = inner, threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return self._inner(environ, start_response)
        length = environ.get("CONTENT_LENGTH")
        if length:
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(length)))
        with self._lock:
            return list(self._inner(environ, start_response))


if __name__ == "__main__":
    app = AtomicPuts(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=MotoRequestHandler)
