"""A place, as the user names it, and the source that it is: a folder, or a mirror's URL."""

from __future__ import annotations

from snapfs.errors import UserError
from snapfs.transfer.sources import FolderSource, Source


def open_source(place: str) -> Source:
    """UserError for what is none; OSError, SnapfsError where it cannot be opened now."""
    scheme, separator, rest = place.partition("://")
    if not separator:
        return FolderSource(place)
    if scheme == "file":
        return FolderSource(rest)
    raise UserError(f"{place}: a source is a folder, or https://MIRROR:PORT/VOLUME")
