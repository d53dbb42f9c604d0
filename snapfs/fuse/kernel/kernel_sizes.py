"""The lengths of files as the kernel has them: with a writeback cache every process that uses the mount sees those.

A file is opened by its handle (open_by_handle_at), as an NFS server does, so no name is needed: the handle of a FUSE
inode is its node id and generation, which is 0 (fuse_encode_fh of fs/fuse/inode.c). Root alone may.
"""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType

from snapfs.base.blocks import Ino
from snapfs.base.mountinfo import device_of

_INO64_GEN = 0x81
_HANDLE = struct.Struct("=IiIII")  # bytes that follow the type, type, node id: upper and lower half, generation
_HANDLE_BYTES = 12

_libc = ctypes.CDLL(None, use_errno=True)


class KernelSizes:
    """Of the mount at `mountpoint`, whose root is held open within `with`. OSError. A worker thread: calls wait."""

    def __init__(self, mountpoint: str) -> None:
        self._root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._device = device_of(mountpoint)

    def of(self, ino: Ino) -> int | None:
        """Length in bytes of a file that the kernel knows; None if it cannot be learned."""
        handle = _HANDLE.pack(_HANDLE_BYTES, _INO64_GEN, ino >> 32, ino & 0xFFFFFFFF, 0)
        fd = _libc.open_by_handle_at(self._root, handle, os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            return None
        try:
            found = os.fstat(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        return found.st_size if (found.st_dev, found.st_ino) == (self._device, ino) else None

    def __enter__(self) -> KernelSizes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)
