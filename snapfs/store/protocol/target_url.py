"""What a target's URL names: a mirror and the volume there, or a folder. No I/O; `snapfs configcheck` uses the same."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from snapfs.base.errors import UserError
from snapfs.store.protocol import wire


def mirror_of(url: str) -> tuple[str, str]:
    """Scheme and host with its port, and the volume's name there. UserError for what can be no mirror's URL."""
    wanted = f"{url}: write https://MIRROR:{wire.DEFAULT_PORT}/VOLUME, with a-z, 0-9, - and _ in VOLUME"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"{wanted} ({error})") from None
    if port == 0:
        raise UserError(f"{wanted} (there is no port 0)")
    volume = parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not wire.VOLUME_NAME.fullmatch(volume):
        raise UserError(wanted)
    return f"{parts.scheme}://{parts.netloc}", volume


def folder_of(url: str) -> str:
    """The folder of a file:// URL. UserError where that is not a whole path, or the root of all."""
    _, _, path = url.partition("://")
    if not path.startswith("/") or not os.path.normpath(path).strip("/"):
        raise UserError(f"{url}: write file:///FOLDER, with the whole path")
    return path
