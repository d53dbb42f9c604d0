"""gates.json of an object store: which gates the snapshots there have passed (snapfs/store/gates/gate_entries.py).

It is no part of the head, which is put with each snapshot and has to be small. It is replaced on condition that it is
the one that was read. Of a snapshot that the head does not name any more it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replicator.targets.bucket_requests import BucketRequests, Conflict
from snapfs.store.bucket.bucket_layout import GATES
from snapfs.store.bucket.gates_object import decode_gates, encode_gates
from snapfs.store.gates.gate_entries import GateEntry, RootOf, merged

_ATTEMPTS: Final = 5


class BucketGates:
    """Reads and replaces it."""

    def __init__(self, requests: BucketRequests) -> None:
        self._requests = requests

    async def read(self) -> list[GateEntry]:
        """Raises OSError, RefusedError. What cannot be understood is as if it were not there."""
        found = await self._requests.find(GATES)
        return [] if found is None else decode_gates(found.data)

    async def put(self, entries: Sequence[GateEntry], root_of: RootOf) -> None:
        """Take these in. Raises OSError, RefusedError, TimeoutError."""
        for _ in range(_ATTEMPTS):
            found = await self._requests.find(GATES)
            known = [] if found is None else decode_gates(found.data)
            body = encode_gates(merged(known, entries, root_of))
            try:
                await self._requests.put_if(GATES, body, None if found is None else found.version)
                return
            except Conflict:
                continue
        raise TimeoutError(f"{GATES} of the object store is changed by another writer all the time")
