"""A place, as the user names it, and the source that it is: a folder, a mirror's URL, or an object store's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfs.base.errors import UserError
from snapfs.store.bucket.bucket_layout import SCHEMES
from snapfs.transfer.sources.folder_source import FolderSource
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.mirror_source import MirrorSource
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.sources import Source

if TYPE_CHECKING:
    from snapfs.transfer.sources.encrypted_source import EncryptedStore


def open_source(place: str, access: Access, *, whole_history: bool = False) -> Source:
    """Open the source. `whole_history`: its list of snapshots has all of them, also where that takes more requests.

    Raises UserError for what is none; OSError, SnapfsError where it cannot be opened now."""
    scheme, separator, rest = place.partition("://")
    if not separator or scheme == "file":
        folder = FolderSource(rest if separator else place)
        return _decrypting(folder, access) if folder.is_encrypted and access.has_key else folder
    if scheme in ("http", "https"):
        mirror = MirrorSource(place, access)
        return _decrypting(mirror, access) if access.has_key and _is_encrypted(mirror) else mirror
    if scheme in SCHEMES:
        from snapfs.transfer.sources.bucket_source import BucketSource  # it takes obstore, which others do not wait for

        store = BucketSource.open(place, access, whole_history=whole_history)
        return _decrypting(store, access) if access.has_key and _is_encrypted(store) else store
    raise UserError(f"{place}: a source is a folder, https://MIRROR:PORT/VOLUME, or s3://BUCKET/PREFIX (gs, az)")


def _is_encrypted(source: EncryptedStore) -> bool:
    try:
        return source.encrypted_origin().identity.encrypted
    except BaseException:
        source.close()
        raise


def _decrypting(source: EncryptedStore, access: Access) -> Source:
    from snapfs.transfer.sources.encrypted_source import DecryptingSource  # most mounts need no cipher

    try:
        return DecryptingSource(source, access)
    except BaseException:
        source.close()
        raise


def late_source(place: str, access: Access, *, whole_history: bool = False) -> LateSource:
    """The source, opened when it is first needed; see `open_source`."""
    return LateSource(place, lambda name: open_source(name, access, whole_history=whole_history))
