"""Everything that is reached through `.snapfs`: requests for node ids and handles with bit 63 set end here.

`operations.py` passes them on; this file decides whether a control node or a snapshot answers. Methods are shaped like
the handlers of pyfuse3 and return its types, but raise OSError, which the one helper there turns into a reply.

Invariants:
1. Nothing in here can be changed: what would is EROFS, but for a truncation of `control`, which does nothing.
2. A file handle in a snapshot is the node id. One of a control node has the node that it opened and a serial number, so
   that each descriptor has a reply of its own; a handle of an earlier daemon is taken up again at its first use.
"""

from __future__ import annotations

import errno
import os
import stat

import pyfuse3

from snapfs.base.blocks import ROOT_INO
from snapfs.fuse.nodes import virtual_attributes
from snapfs.fuse.nodes.node_ids import ControlNode, NodeId, control_node, split
from snapfs.fuse.virtual.browse import Browser
from snapfs.fuse.virtual.caller import caller_of
from snapfs.fuse.virtual.control_nodes import ControlContext, FenceSwitch, Handle, make_nodes

NAME = b".snapfs"
SNAPSHOTS_ENTRY_SECONDS = 1.0
"""How long the kernel may believe that a snapshot of some number or name exists; they can be dropped."""

_DIRECTORY = control_node(ControlNode.DIRECTORY)
_SNAPSHOTS = control_node(ControlNode.SNAPSHOTS)
_KIND_BITS = 3
_SERIALS = 1 << 32
_DAEMONS = 1 << 12


class VirtualNodes:
    """The tree under `.snapfs`."""

    def __init__(
        self, context: ControlContext, browser: Browser, fence: FenceSwitch, time_ns: int, predecessors: int = 0
    ) -> None:
        """`fence`: where the flush before a cut waits. `time_ns`: what the times of the nodes show.

        `predecessors`: how many daemons served this mount before; keeps their handles apart from those of this one.
        """
        self._browser = browser
        self._nodes = make_nodes(context, fence, time_ns)
        self._by_name = {node.name: node for node in self._nodes.values()}
        self._handles: dict[int, Handle] = {}
        self._serial = predecessors % _DAEMONS * (_SERIALS // _DAEMONS)

    async def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The entry `name` of a virtual directory, or `.snapfs` itself in the root of the live tree."""
        if parent == ROOT_INO:
            return self._nodes[_DIRECTORY].attributes()
        if name == b".":
            return await self.getattr(parent)
        if split(parent).snapshot:
            return await self._lookup_in_snapshot(NodeId(parent), name)
        if parent == _SNAPSHOTS:
            return self._nodes[_DIRECTORY].attributes() if name == b".." else await self._snapshot(name)
        if parent == _DIRECTORY and name in self._by_name and name != NAME:
            return self._by_name[name].attributes()
        raise _error(errno.ENOENT)

    async def _lookup_in_snapshot(self, parent: NodeId, name: bytes) -> pyfuse3.EntryAttributes:
        if name != b"..":
            return await self._browser.lookup(parent, name)
        if split(parent).ino == ROOT_INO:
            return self._nodes[_SNAPSHOTS].attributes()
        raise _error(errno.ESTALE)  # a snapshot has no way up; only an export of the mount needs one

    async def _snapshot(self, name: bytes) -> pyfuse3.EntryAttributes:
        entry = await self._browser.root(name)
        entry.entry_timeout = SNAPSHOTS_ENTRY_SECONDS
        return entry

    async def getattr(self, node: int) -> pyfuse3.EntryAttributes:
        if split(node).snapshot:
            return await self._browser.getattr(NodeId(node))
        if NodeId(node) not in self._nodes:
            raise _error(errno.ESTALE)
        return self._nodes[NodeId(node)].attributes()

    async def setattr(self, node: int, fields: pyfuse3.SetattrFields) -> pyfuse3.EntryAttributes:
        own = self._nodes.get(NodeId(node))
        if own is None or not own.may_change() or fields.update_mode or fields.update_uid or fields.update_gid:
            raise _error(errno.EROFS)
        return own.attributes()

    async def readlink(self, node: int) -> bytes:
        return (await self._browser.record(self._browsed(node))).target

    async def open(self, node: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if not split(node).snapshot:
            return self._open_own(NodeId(node), flags, ctx)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise _error(errno.EROFS)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(node), keep_cache=True)

    def _open_own(self, node: NodeId, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        own = self._nodes[node]
        if flags & os.O_ACCMODE != os.O_RDONLY and not own.may_change():
            raise _error(errno.EROFS)
        self._serial = (self._serial + 1) % _SERIALS
        which = split(node).ino
        fh = control_node(ControlNode.DIRECTORY) - ControlNode.DIRECTORY + (self._serial << _KIND_BITS | which)
        self._handles[fh] = own.open(fh, caller_of(ctx))
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), direct_io=True)

    def _handle(self, fh: int) -> Handle:
        handle = self._handles.get(fh)
        if handle is None:  # opened while an earlier daemon served
            which = ControlNode(split(fh).ino & (1 << _KIND_BITS) - 1)
            handle = self._handles[fh] = self._nodes[control_node(which)].open(fh)
        return handle

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        if split(fh).snapshot:
            return await self._browser.read(NodeId(fh), offset, size)
        return await self._handle(fh).read(offset, size)

    async def lseek(self, node: int, offset: int, whence: int) -> int:
        """The next data or hole of a file of a snapshot; a control node has no holes. ENXIO beyond the end."""
        if split(node).snapshot:
            return await self._browser.lseek(NodeId(node), offset, whence)
        size = (await self.getattr(node)).st_size
        if offset >= size:
            raise _error(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else size

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        if split(fh).snapshot:
            raise _error(errno.EROFS)
        return await self._handle(fh).write(offset, data)

    async def release(self, fh: int) -> None:
        handle = self._handles.pop(fh, None)
        if handle is not None:
            handle.released()

    async def opendir(self, node: int) -> int:
        """The handle of a directory is its node id."""
        if not stat.S_ISDIR((await self.getattr(node)).st_mode):
            raise _error(errno.ENOTDIR)
        return node

    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        if split(fh).snapshot:
            await self._browser.readdir(NodeId(fh), start, token)
        elif fh == _SNAPSHOTS:
            await self._list_snapshots(start, token)
        else:
            self._list_own(start, token)

    def _list_own(self, start: int, token: pyfuse3.ReaddirToken) -> None:
        for node in self._nodes.values():
            cookie = split(node.id).ino
            if (
                cookie > start
                and node.listed
                and node.id != _DIRECTORY
                and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(node.name), node.attributes(), cookie)
            ):
                return

    async def _list_snapshots(self, start: int, token: pyfuse3.ReaddirToken) -> None:
        for entry in self._browser.entries(start):
            try:
                shown = await self._snapshot(entry.name)
            except OSError:
                shown = virtual_attributes.nothing()  # the name is listed; a lookup returns what is wrong
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(entry.name), shown, entry.cookie):
                return

    async def getxattr(self, node: int, name: bytes) -> bytes:
        for key, value in await self._xattrs(node):
            if key == name:
                return value
        raise _error(errno.ENODATA)

    async def listxattr(self, node: int) -> list[bytes]:
        return [key for key, _ in await self._xattrs(node)]

    async def _xattrs(self, node: int) -> tuple[tuple[bytes, bytes], ...]:
        return (await self._browser.record(NodeId(node))).xattrs if split(node).snapshot else ()

    def _browsed(self, node: int) -> NodeId:
        if not split(node).snapshot:
            raise _error(errno.EINVAL)
        return NodeId(node)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
