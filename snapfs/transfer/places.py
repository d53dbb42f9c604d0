"""A place, as the user names it, and the source that it is: a folder, or a mirror's URL."""

from __future__ import annotations

from snapfs.errors import UserError
from snapfs.transfer.remote import Access, MirrorSource
from snapfs.transfer.sources import FolderSource, LateSource, Source


def open_source(place: str, access: Access) -> Source:
    """UserError for what is none; OSError, SnapfsError where it cannot be opened now."""
    scheme, separator, rest = place.partition("://")
    if not separator:
        return FolderSource(place)
    if scheme == "file":
        return FolderSource(rest)
    if scheme in ("http", "https"):
        return MirrorSource(place, access)
    raise UserError(f"{place}: a source is a folder, or https://MIRROR:PORT/VOLUME")


def late_source(place: str, access: Access) -> LateSource:
    """Opened when it is needed."""
    return LateSource(place, lambda name: open_source(name, access))
