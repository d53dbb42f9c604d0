"""A place, as the user names it, and the source that it is: a folder, a mirror's URL, or an object store's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.errors import UserError
from snapfs.store.bucket import SCHEMES
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
        return _sealed(mirror, access) if access.has_key and _is_opaque(mirror) else mirror
    if scheme in SCHEMES:
        from snapfs.transfer.buckets import BucketSource  # it takes obstore, which others do not wait for

        store = BucketSource.open(place, access)
        return _sealed(store, access) if access.has_key and _is_opaque(store) else store
    raise UserError(f"{place}: a source is a folder, https://MIRROR:PORT/VOLUME, or s3://BUCKET/PREFIX (gs, az)")


def _is_opaque(source: OpaqueSource) -> bool:
    try:
        return source.opaque_origin().identity.opaque
    except BaseException:
        source.close()
        raise


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
