"""Objects from a volume's own targets, for a repair; also where the volume is encrypted there.

Invariants:
1. A target is opened with the first request, and one that fails gets no more requests: a repair of many objects does
   not wait for each of them.
2. The content is returned unchecked: the caller compares it with the content hash.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from snapfs.base.errors import SnapfsError
from snapfs.base.settings.replication_settings import expanded, target_name
from snapfs.base.volumes.volume import Volume
from snapfs.store.objects.format import Pointer
from snapfs.store.objects.payload_types import Bases, DecodeError
from snapfs.store.protocol.object_stream import Item
from snapfs.transfer.sources.late_source import LateSource
from snapfs.transfer.sources.source_access import Access
from snapfs.transfer.sources.source_urls import late_source

log = logging.getLogger(__name__)


class RepairTargets:
    """The targets of one volume. One thread. `close` it."""

    def __init__(self, volume: Volume, report: Callable[[str], None] = log.warning) -> None:
        """`report` is called with a line for each target that is used, and for each that cannot be reached."""
        self._volume_id, self._seed, self._report = volume.volume_id, volume.seed, report
        settings = volume.config.replication
        self._sources = {
            target_name(each): late_source(expanded(each).url, Access.of(each, settings.encryption))
            for each in settings.target
        }
        self._known: set[str] = set()

    def fetch(self, pointer: Pointer) -> bytes | None:
        """The object's content, if a target has it."""
        for name, source in list(self._sources.items()):
            try:
                self._check(name, source)
                plain = _decoded(source, pointer)
            except DecodeError:
                continue
            except (OSError, SnapfsError) as error:
                self._report(f"{name} cannot be reached: {error}")
                self._sources.pop(name).close()
                continue
            if plain is not None:
                return plain
        return None

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def _check(self, name: str, source: LateSource) -> None:
        if name not in self._known:
            identity = source.origin().identity
            if (identity.volume_id, identity.seed) != (self._volume_id, self._seed):
                raise OSError(f"{source.name} keeps another volume")
            self._known.add(name)
            self._report(f"requesting from {name} what is found nowhere here")


def _decoded(source: LateSource, pointer: Pointer) -> bytes | None:
    items: dict[int, Item] = {}
    for item in source.objects([pointer]):
        if not item.is_absent:
            items[item.frame.number] = item
    found = items.get(pointer.number)
    if found is None or not found.frame.base:
        return found.decode(None) if found is not None else None
    bases = [items[number].decode(None) if number in items else b"" for number in found.bases_in_order()]
    return found.decode(Bases(*bases))
