"""The head of a volume in an object store, as its writer keeps it: read, judged, and moved by puts on condition.

Invariants:
1. What is in memory is the head that was read or put last, with all that its pages name.
2. A head that another writer has changed is never replaced: the put is refused, the head is read again, and a claim
   that is not ours in it means "fenced". `others` counts how often what was read was not what we had put.
3. A put whose answer was lost is recognised by its content, and not done twice.
4. The head names at most `tail` entries itself; then they move into pages. A page with the content of one of the head
   that is there is not put again; any other gets a name that was never given before, by the salt in it.
5. A head is made only where there is nothing: beside segments or pages its absence is damage, and reported as such.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import obstore

from replicator.targets.bucket_requests import BucketRequests, Conflict
from snapfs.base.blocks import Generation
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.store.bucket import bucket_layout, catalog_pages, head_object
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.bucket.catalog_pages import BucketCatalog, Page
from snapfs.store.bucket.head_object import Head
from snapfs.store.log.peers import Peers
from snapfs.store.log.snapshot_records import StoreIdentity
from snapfs.store.objects.segment_index import SegmentInfo
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import MODE_DIFFERS, Mode

_ATTEMPTS: Final = 5
_CLAIMS: Final = 20


class HeadKeeper:
    """`salt`: the writer's own."""

    def __init__(self, requests: BucketRequests, tail: int, salt: str) -> None:
        self._requests, self._tail, self._salt = requests, tail, salt
        self._put = 0  # pages
        self._identity: StoreIdentity | None = None
        self._version: obstore.UpdateVersion | None = None
        self._data = b""
        self._paged = BucketCatalog()  # what the pages name, before the changes in the head
        self._pages: dict[bytes, str] = {}  # the content of each page of the head, and its key
        self.head = Head(bucket_layout.FORMAT, "", "0")
        self.catalog = BucketCatalog()
        """What there is."""
        self.claimed: tuple[Generation, str] | None = None
        self.others = 0
        self._refusal: Exception | None = None

    def refuse_all(self, why: Exception | None) -> None:
        """From now on nothing may be changed here, whatever the claim, for this reason; None: it may again."""
        self._refusal = why

    def forget_claim(self) -> None:
        """We are not the writer until `claim` returns."""
        self.claimed = None

    @property
    def identity(self) -> StoreIdentity:
        assert self._identity is not None, "open comes first"
        return self._identity

    async def open(self, identity: StoreIdentity, may_make: Callable[[], Awaitable[object]]) -> None:
        """Read the head, or make the first one; `may_make` is awaited before that, and raises if it must not be."""
        self._identity = identity
        made = Head(
            bucket_layout.FORMAT,
            identity.volume_id,
            f"{identity.seed:016x}",
            encrypted=identity.encrypted,
            target=bucket_layout.new_id(),
        )
        while not await self.read():
            if await self._requests.any(bucket_layout.SEGMENTS) or await self._requests.any(bucket_layout.CATALOG):
                if await self.read():  # made by another one, a moment ago
                    return
                raise refuse(
                    Refusal.CORRUPT, f"{HEAD} is missing there, and its segments are not: put back the last version of "
                    "it, or choose another prefix",
                )  # fmt: skip
            await may_make()
            if await self.try_put(made):
                return

    async def read(self) -> bool:
        """Take in the head and its pages; False if there is none."""
        found = await self._requests.find(HEAD)
        if found is None:
            self._version, self._data = None, b""
            self.others += 1
            return False
        if found.data != self._data:
            self.others += 1
        head = decoded_head(found.data)
        self._check(head)
        paged, pages = BucketCatalog(), {}
        try:
            for key in head.pages:
                page = catalog_pages.decode_page(await self._requests.get(key), key)
                pages[catalog_pages.unsalted(page)] = key
                paged.take(page.snapshots, page.segments)
            catalog = paged.with_head(head)
        except CorruptionError as error:
            raise refuse(Refusal.CORRUPT, str(error)) from None
        self._version, self._data = found.version, found.data
        self.head, self._paged, self._pages, self.catalog = head, paged, pages, catalog
        return True

    async def claim(
        self, generation: Generation, writer_id: str, snapshot: int = 0, peers: Peers | None = None
    ) -> None:
        """Become the writer. Raises "fenced" if a newer generation, or another writer of this one, is."""
        self.claimed = None
        for _ in range(_CLAIMS):
            if not await self.read():
                raise refuse(Refusal.CORRUPT, f"{HEAD} is gone from the object store")
            head = self.head.claimed(generation, writer_id, snapshot, peers)
            if head == self.head or await self.try_put(head):
                self.claimed = generation, writer_id
                return
        raise TimeoutError("the head of the object store is changed by another writer all the time")

    @property
    def version(self) -> str:
        """The store's name of the version of the head that is in memory; "" where it keeps no versions."""
        return (self._version or {}).get("version") or ""

    def segments(self) -> list[SegmentInfo]:
        """Those that the head names, ascending by number; `path` is the name."""
        return sorted(self.catalog.segments.values(), key=lambda info: (info.first, info.last))

    def check_claimed(self) -> None:
        """Raises RefusedError if we are not the writer by what was read last."""
        if self._refusal is not None:
            raise self._refusal
        if self.claimed is None:
            raise refuse(Refusal.UNCLAIMED, "no generation has been claimed")
        if self.claimed != (self.head.generation, self.head.writer_id):
            raise self.head.fenced(self.claimed[0])

    async def change(self, change: Callable[[Head], Head]) -> None:
        """Replace the head by what `change` makes of it. Raises "fenced" if the claim is another's by then."""
        self.check_claimed()
        for _ in range(_ATTEMPTS):
            head = msgspec.structs.replace(change(self.head), revision=self.head.revision + 1)
            if await self.try_put(head):
                return
            if not await self.read():
                raise refuse(Refusal.CORRUPT, f"{HEAD} is gone from the object store")
            self.check_claimed()
        raise TimeoutError("the head of the object store is changed by another writer all the time")

    async def try_put(self, head: Head) -> bool:
        """Put it in the place of the one that was read; False if that is not there any more."""
        tail = len(head.snapshots) + len(head.dropped) + len(head.segments) + len(head.gone)
        paged, pages, catalog = self._paged, self._pages, self._paged.with_head(head)
        if tail > self._tail:
            pages = {catalog_pages.unsalted(page): await self._put_page(page) for page in catalog.pages()}
            head = msgspec.structs.replace(
                head, pages=list(pages.values()), snapshots=[], dropped=[], segments=[], gone=[]
            )
            paged = catalog
        data = head_object.encode_head(head)
        try:
            version = await self._requests.put_if(HEAD, data, self._version)
        except Conflict:
            found = await self._requests.find(HEAD)
            if found is None or found.data != data:
                return False
            version = found.version
        self._version, self._data = version, data
        self.head, self._paged, self._pages, self.catalog = head, paged, pages, catalog
        return True

    async def _put_page(self, page: Page) -> str:
        known = self._pages.get(catalog_pages.unsalted(page))
        if known is not None:
            return known
        self._put += 1
        key, data = catalog_pages.encode_page(msgspec.structs.replace(page, salt=f"{self._salt}{self._put:x}"))
        await self._requests.put_once(key, data)
        return key

    def _check(self, head: Head) -> None:
        identity = self.identity
        if head.volume == identity.volume_id and head.encrypted != identity.encrypted:
            raise refuse(Refusal.EXISTS, MODE_DIFFERS[Mode.ENCRYPTED if identity.encrypted else Mode.PLAIN])
        if head.identity != identity:
            raise refuse(Refusal.EXISTS, f"another volume ({head.volume}) is there already: choose another prefix")


def decoded_head(data: bytes) -> Head:
    """Raises RefusedError: of a version, or corrupt."""
    try:
        return head_object.decode_head(data)
    except VersionError as error:
        raise refuse(Refusal.VERSION, str(error)) from None
    except CorruptionError as error:
        raise refuse(Refusal.CORRUPT, str(error)) from None
