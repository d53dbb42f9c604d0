"""Requests to an object store, counted, with failures as targets raise them.

Invariants:
1. A refused conditional put is reported as such (`Conflict`), and as nothing else: AlreadyExistsError,
   PreconditionError and FileExistsError of obstore mean the same.
2. Nothing is tried again here but by obstore itself, which tries a request twice more. So a put that took effect, and
   whose answer was lost, may be reported as refused; the caller has to recognise what is its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import ObjectStore

from snapfs.store.bucket import bucket_client
from snapfs.store.protocol.refusals import Refusal, refuse

MULTIPART_BYTES: Final = 16 << 20
REFUSED: Final = (PreconditionError, AlreadyExistsError, FileExistsError)
_MISSING: Final = (NotFoundError, FileNotFoundError)


class Conflict(Exception):  # noqa: N818 - an answer, and no error
    """The condition of a put does not hold."""


class FoundObject(NamedTuple):
    """An object and the version that a put on condition names."""

    data: bytes
    version: obstore.UpdateVersion


class BucketRequests:
    """Raises RefusedError for what the store refuses, OSError for a link that fails."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.counts: dict[str, int] = {}
        """Requests by kind: object stores charge for them."""

    async def find(self, key: str) -> FoundObject | None:
        """None if there is no such object."""
        self._count("get")
        try:
            answer = await obstore.get_async(self.store, key)
            data = bytes(await answer.bytes_async())
        except _MISSING as error:
            if "NoSuchBucket" in str(error):
                raise bucket_client.no_head(error) from None
            return None
        except BaseError as error:
            raise bucket_client.failure(error) from None
        return FoundObject(data, bucket_client.version_of(answer.meta["e_tag"], answer.meta["version"]))

    async def get(self, key: str) -> bytes:
        """Of an object that the head names."""
        found = await self.find(key)
        if found is None:
            raise _gone(key)
        return found.data

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        self._count("get")
        try:
            return bytes(await obstore.get_range_async(self.store, key, start=start, end=end))
        except _MISSING:
            raise _gone(key) from None
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def put_if(self, key: str, data: bytes, version: obstore.UpdateVersion | None) -> obstore.UpdateVersion:
        """Replace this version, or make the object if it is None; the version made. Raises Conflict."""
        self._count("put")
        try:
            made = await obstore.put_async(self.store, key, data, mode=version or "create", use_multipart=False)
        except REFUSED:
            raise Conflict from None
        except BaseError as error:
            raise bucket_client.failure(error) from None
        return bucket_client.version_of(made["e_tag"], made["version"])

    async def put_once(self, key: str, data: bytes) -> None:
        """Make an object under a name that no other writer gives: if it is there, it is ours, and the same."""
        if len(data) <= MULTIPART_BYTES:
            with contextlib.suppress(Conflict):  # the answer to the same put was lost
                await self.put_if(key, data, None)
            return
        self._count("put")
        try:
            await obstore.put_async(self.store, key, data, use_multipart=True, chunk_size=MULTIPART_BYTES)
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def list(self, folder: str) -> list[str]:
        """The names of all that is there below a prefix."""
        self._count("list")
        try:
            return [meta["path"] async for batch in obstore.list(self.store, folder) for meta in batch]
        except BaseError as error:
            raise bucket_client.failure(error) from None

    async def any(self, folder: str) -> bool:
        """Whether anything is there below a prefix."""
        self._count("list")
        try:
            async for batch in obstore.list(self.store, folder, chunk_size=1):
                return bool(batch)
        except BaseError as error:
            raise bucket_client.failure(error) from None
        return False

    async def delete(self, keys: Sequence[str]) -> None:
        """What is gone already is no failure."""
        if not keys:
            return
        self._count("delete")
        try:
            with contextlib.suppress(*_MISSING):
                await obstore.delete_async(self.store, list(keys))
        except BaseError as error:
            raise bucket_client.failure(error) from None

    def _count(self, kind: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1


def _gone(key: str) -> Exception:
    return refuse(Refusal.CORRUPT, f"{key} is missing in the object store, though the head names it")
