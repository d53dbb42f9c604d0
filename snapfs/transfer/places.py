"""A place, as the user names it, and the source that it is: a folder, or a mirror's URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.errors import UserError
from snapfs.transfer.remote import Access, MirrorSource
from snapfs.transfer.sources import FolderSource, LateSource, Source

if TYPE_CHECKING:
    from snapfs.transfer.sealed import OpaqueSource


def open_source(place: str, access: Access) -> Source:
    """UserError for what is none; OSError, SnapfsError where it cannot be opened now."""
    scheme, separator, rest = place.partition("://")
    if not separator or scheme == "file":
        folder = FolderSource(rest if separator else place)
        return _sealed(folder, access) if folder.is_opaque and access.has_key else folder
    if scheme in ("http", "https"):
        mirror = MirrorSource(place, access)
        return _sealed(mirror, access) if access.has_key and mirror.opaque_origin().identity.opaque else mirror
    raise UserError(f"{place}: a source is a folder, or https://MIRROR:PORT/VOLUME")


def _sealed(source: OpaqueSource, access: Access) -> Source:
    from snapfs.transfer.sealed import SealedSource  # most mounts need no cipher

    try:
        return SealedSource(source, access)
    except BaseException:
        source.close()
        raise


def late_source(place: str, access: Access) -> LateSource:
    """Opened when it is needed."""
    return LateSource(place, lambda name: open_source(name, access))
