"""What a volume's own targets still have of its past, for a repair; also where it is encrypted.

Invariants:
1. Nothing of a target is opened before something is asked for, and one that fails is asked no more: a repair of many
   objects does not wait for each of them.
2. What comes is as it came: who asked checks it against its proof.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from snapfs.config import target_name
from snapfs.errors import SnapfsError
from snapfs.store.codec import Bases, DecodeError
from snapfs.store.format import Pointer
from snapfs.store.stream import Item
from snapfs.transfer.places import late_source
from snapfs.transfer.remote import Access
from snapfs.transfer.sources import LateSource, bases_in_order
from snapfs.volume import Volume

log = logging.getLogger(__name__)


class Targets:
    """Used by one thread. `close` it."""

    def __init__(self, volume: Volume, say: Callable[[str], None] = log.warning) -> None:
        """`say` is told in a line which target was of help, and which cannot be asked."""
        self._volume_id, self._seed, self._say = volume.volume_id, volume.seed, say
        settings = volume.config.replication
        self._sources = {
            target_name(each): late_source(each.url, Access.of(each, settings.encryption)) for each in settings.target
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
                self._say(f"{name} cannot be asked: {error}")
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
            self._say(f"{name} is asked for what is found nowhere here")


def _decoded(source: LateSource, pointer: Pointer) -> bytes | None:
    items: dict[int, Item] = {}
    for item in source.objects([pointer]):
        if not item.is_absent:
            items[item.frame.number] = item
    found = items.get(pointer.number)
    if found is None or not found.frame.base:
        return found.decode(None) if found is not None else None
    bases = [items[number].decode(None) if number in items else b"" for number in bases_in_order(found)]
    return found.decode(Bases(*bases))
