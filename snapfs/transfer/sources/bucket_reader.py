"""Requests to an object store, counted, with their failures as those of a source.

Requests come from any number of threads. One is repeated by itself for RETRY_S at most; the rest is the fetcher's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from snapfs.store.bucket import bucket_client, conditional_puts, head_object, segment_names
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.head_object import Head
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.refusals import Refusal, RefusedError, refuse
from snapfs.transfer.sources.mirror_source import CONNECT_S, SILENCE_S
from snapfs.transfer.sources.source_access import Access

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

RETRY_S: Final = 3
_WAITS: Final = {"connect_timeout": f"{CONNECT_S:.0f}s", "read_timeout": f"{SILENCE_S:.0f}s", "timeout": "300s"}


class GoneError(OSError):
    """A segment or page is not there (any more)."""


def open_store(url: str, access: Access) -> ObjectStore:
    """The object store at `url`. Raises UserError for a URL or an access that cannot be."""
    return bucket_client.open_bucket(
        url, access.options, access.token_file or "", waits=_WAITS, retry_s=RETRY_S, or_token=True
    )


class BucketReader:
    """The requests to one volume's prefix. `name` begins every message. Any thread; all methods raise OSError."""

    def __init__(self, name: str, store: ObjectStore) -> None:
        self.name, self._store = name, store
        self.requests: Counter[str] = Counter()
        """How many of each kind; requests are what object stores charge for."""
        self._is_proved = False

    def read_range(self, info: SegmentInfo, start: int, end: int) -> bytes:
        """Bytes of a segment. Raises GoneError."""
        import obstore

        self.requests["range"] += 1
        with self._failures():
            return bytes(obstore.get_range(self._store, segment_names.segment_path(info.path), start=start, end=end))

    def read_whole(self, key: str) -> bytes:
        """A whole stored object, such as a page of the catalog. Raises GoneError."""
        import obstore

        self.requests["page"] += 1
        with self._failures():
            return bytes(obstore.get(self._store, key).bytes())

    def sizes(self, prefix: str) -> dict[str, int]:
        """The sizes in bytes of all stored objects below `prefix`, by path."""
        import obstore

        self.requests["list"] += 1
        with self._failures():
            return {meta["path"]: meta["size"] for batch in obstore.list(self._store, prefix) for meta in batch}

    def read_head(self, known: UpdateVersion | None) -> tuple[Head, UpdateVersion] | None:
        """The head and its version; None if it still has the version `known`.

        Raises RefusedError ("not found") where there is none, VersionError, CorruptionError.
        """
        import obstore
        from obstore.exceptions import BaseError, NotFoundError, NotModifiedError

        e_tag = known.get("e_tag") if known is not None else None
        self.requests["head"] += 1
        try:
            answer = obstore.get(self._store, HEAD, options={"if_none_match": e_tag} if e_tag else {})
            data = bytes(answer.bytes())
        except NotModifiedError:
            return None
        except (NotFoundError, FileNotFoundError) as error:
            raise bucket_client.no_head(error) from None
        except BaseError as error:
            raise self._failure(error) from None
        meta = answer.meta
        return head_object.decode_head(data), bucket_client.version_of(meta["e_tag"], meta["version"])

    def put_head(self, head: Head, known: UpdateVersion) -> UpdateVersion | None:
        """Put the head in the place of the version `known`; None if another writer has changed that meanwhile."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self.requests["put"] += 1
        with self._failures():
            try:
                made = obstore.put(self._store, HEAD, head_object.encode_head(head), mode=known, use_multipart=False)
            except (PreconditionError, AlreadyExistsError):
                return None
        return bucket_client.version_of(made["e_tag"], made["version"])

    def prove_conditions(self) -> None:
        """Make sure, once, that the store refuses puts whose condition does not hold. Raises RefusedError if not."""
        if self._is_proved:
            return
        try:
            conditional_puts.prove(self._store)
        except RefusedError as error:
            raise refuse(error.refusal or Refusal.INTERNAL, f"{self.name}: {error}") from None
        except OSError as error:
            raise OSError(f"{self.name}: {error}") from None
        self._is_proved = True

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn failures of obstore into those of a source."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            yield
        except (NotFoundError, FileNotFoundError) as error:
            raise GoneError(f"{self.name}: {bucket_client.words(error)}") from None
        except BaseError as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> Exception:
        found = bucket_client.failure(error)
        if isinstance(found, RefusedError):
            return refuse(found.refusal or Refusal.INTERNAL, f"{self.name}: {found}")
        return OSError(f"{self.name}: {bucket_client.words(error)}")
