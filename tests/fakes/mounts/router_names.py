"""Changes of names as a mount makes them: by the router in C where it may, else by Python."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

from snapfs.base.blocks import Ino
from snapfs.live.tree import LiveTree
from tests.fuse.kernel.test_router_looks import ATTR, ENTRY, Forwarded, Kernel, shown

MKNOD, UNLINK, LINK, RENAME2 = 8, 10, 13, 45


class RouterNames:
    """Takes the place of `LiveTree.mknod`, `link`, `unlink` and `rename`; owner: root."""

    def __init__(self, tree: LiveTree, unique: int = 0) -> None:
        """`unique`: the number of the last request of an earlier life under the same mount."""
        self._tree, self._kernel = tree, Kernel(tree)
        self._kernel._unique = unique
        self.answers: dict[int, int] = {}
        """By the number of the request: the inode of a name that C made, 0 for other changes of C."""

    @property
    def unique(self) -> int:
        """The number of the last request."""
        return self._kernel._unique

    def close(self) -> None:
        self._kernel.close()

    def _either(self, opcode: int, node: int, body: bytes, python: Callable[[], object]) -> None:
        try:
            reply = self._kernel.ask(opcode, node, body)
        except Forwarded:
            python()
        else:
            self.answers[self.unique] = shown(reply[: ENTRY.size + ATTR.size])[0] if reply else 0

    def mknod(self, parent: Ino, name: bytes, mode: int) -> Ino:
        body = struct.pack("=4I", mode, 0, 0, 0) + name + b"\0"
        self._either(MKNOD, parent, body, lambda: self._tree.mknod(parent, name, mode, 0, 0, 0))
        return self._tree.lookup(parent, name).ino

    def link(self, ino: Ino, parent: Ino, name: bytes) -> None:
        body = struct.pack("=Q", ino) + name + b"\0"
        self._either(LINK, parent, body, lambda: self._tree.link(ino, parent, name))

    def unlink(self, parent: Ino, name: bytes) -> None:
        self._either(UNLINK, parent, name + b"\0", lambda: self._tree.unlink(parent, name))

    def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes) -> None:
        body = struct.pack("=QII", new_parent, 0, 0) + name + b"\0" + new_name + b"\0"
        changes = self._find(parent, name) != self._find(new_parent, new_name)
        self._either(RENAME2, parent, body, lambda: self._tree.rename(parent, name, new_parent, new_name))
        if not changes:  # it is not noted, for it may be done twice
            self.answers.pop(self.unique, None)

    def _find(self, parent: Ino, name: bytes) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._tree.lookup(parent, name).ino
        return 0
