"""The templates and static files of the console: package data, read once.

Invariants:
1. Every value is escaped by the template engine (autoescape); no template marks one as safe.
2. A name that a template uses and no model has is an error (StrictUndefined), not an empty place.
3. Static files are the few that are listed here; nothing that a request names reaches the filesystem.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined

_TYPES: Final = {"console.css": "text/css", "console.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """`version`: of its content, a part of its URL."""

    body: bytes
    content_type: str
    version: str


def static_files() -> dict[str, StaticFile]:
    """By name."""
    folder = resources.files("replicator.console").joinpath("static")
    found = {}
    for name, content_type in _TYPES.items():
        body = folder.joinpath(name).read_bytes()
        found[name] = StaticFile(body, content_type, hashlib.sha256(body).hexdigest()[:12])
    return found


class Templates:
    """Renders pages. Thread-safe."""

    def __init__(self, static: dict[str, StaticFile], base: str) -> None:
        self._environment = Environment(
            loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, auto_reload=False,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        files = {name: f"{base}/static/{name}?v={file.version}" for name, file in static.items()}
        self._environment.globals.update(base=base, files=files)

    def render(self, template: str, /, **model: Any) -> str:
        return self._environment.get_template(template).render(model)


def _source(name: str) -> str | None:
    found = resources.files("replicator.console").joinpath("templates").joinpath(name)
    return found.read_text("utf-8") if found.is_file() else None
