"""Which life of the host's filesystem this is: what only its page cache holds is lost when that life ends.

A life begins when the kernel reads the filesystem's superblock, and ends when it drops it: by a reboot or an unmount.
After a shutdown of the filesystem (an I/O error in its journal) that unmount loses what was not on the disk, as a power
cut does, and the machine's boot id stays the same. So each life has a *token*, which the intent log and the residency
files carry in the place of the boot id: what they record of the page cache counts in that life alone.

Owns live/life, a record of fixed size: magic, version, boot id, number of the host's mount, token, checksum.

Invariants:
1. A token that was read is kept only if it is proven that the superblock lives on, by one of two witnesses. The kernel
   keeps both in memory alone, so that none of them outlives the superblock:
   a. The host's mount has the unique number of the record (statx, Linux 6.8 and later), which no other mount ever gets.
   b. The inode of live/life still has the write hint (F_SET_RW_HINT, Linux 4.13 and later) that its maker gave it. It
      is lost with the inode, mostly earlier than the superblock; it holds across bind mounts and mount namespaces.
   Without a witness a new token is made: all that the last life listed is compared in full.
2. A daemon that adopts a living mount needs no witness: its supervisor holds a descriptor of the volume's lock.
3. `withdraw` is called as soon as the host has reported lost bytes, before any caller relies on them: the next daemon
   finds a token that no log has.

A crash while the record is replaced leaves the old one, or the new; one that is not durable is not found by another
life, which makes its own token.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from snapfs.base.blocks import Disk
from snapfs.base.errors import VersionError

MAGIC = b"snapLIFE"
VERSION = 1
RECORD = struct.Struct("<8sHxxxxxxQ36s36s")  # magic, version, mount number, boot id, token
CHECKSUM = struct.Struct("<I")
RECORD_SIZE = RECORD.size + CHECKSUM.size

_GET_RW_HINT, _SET_RW_HINT = 1035, 1036
_HINT = struct.pack("=Q", 5)  # RWH_WRITE_LIFE_EXTREME: no other program gives it to this file
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES, _MASK_AT, _MOUNT_AT = 256, 0, 144
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class LifeRecord:
    """The content of live/life. `mount`: 0 where the kernel reports none."""

    boot_id: str
    mount: int
    token: str

    def pack(self, version: int = VERSION) -> bytes:
        body = RECORD.pack(MAGIC, version, self.mount, self.boot_id.encode("ascii"), self.token.encode("ascii"))
        return body + CHECKSUM.pack(zlib.crc32(body))


def unpack(path: str, data: bytes) -> LifeRecord | None:
    """The record, None for what is none: then nothing is known of the last life. VersionError."""
    if len(data) < RECORD_SIZE or not data.startswith(MAGIC):
        return None
    body = data[: RECORD.size]
    if CHECKSUM.unpack_from(data, RECORD.size) != (zlib.crc32(body),):
        return None
    _, version, mount, boot_id, token = RECORD.unpack(body)
    if version > VERSION:
        raise VersionError(f"{path} has format {version}; this snapfs reads up to {VERSION}: use a newer snapfs")
    return LifeRecord(boot_id.rstrip(b"\0").decode("ascii"), mount, token.rstrip(b"\0").decode("ascii"))


def mount_number(path: str) -> int:
    """The number of the mount that `path` is in, which the kernel gives no other one; 0 if it reports none."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if not hasattr(_libc, "statx") or _libc.statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, found):
        return 0
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    return int(struct.unpack_from("=Q", found, _MOUNT_AT)[0]) if mask & _STATX_MNT_ID_UNIQUE else 0


class HostLife:
    """The present life of the filesystem that holds `live_dir`. Holds a descriptor of live/life until `close`."""

    def __init__(
        self, live_dir: str, disk: Disk, boot_id: str, *, adopting: bool = False,
        number_of: Callable[[str], int] = mount_number,
    ) -> None:  # fmt: skip
        """Find out whether the life in the record goes on; else begin one. OSError, VersionError."""
        self.path = os.path.join(live_dir, "life")
        self._live_dir, self._disk, self._boot_id, self._number_of = live_dir, disk, boot_id, number_of
        self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.token = self._proven(adopting) or self._begin(self._first_token(adopting))
        except BaseException:
            self.close()
            raise

    def _first_token(self, adopting: bool) -> str:
        """Before there were tokens the logs had the boot id; an upgrade under a living mount goes on with these."""
        return self._boot_id if adopting and self._fd < 0 else str(uuid.uuid4())

    def _proven(self, adopting: bool) -> str:
        """The token on record, if a witness shows that its life goes on; else an empty one."""
        if self._fd < 0:
            return ""
        found = unpack(self.path, os.pread(self._fd, RECORD_SIZE, 0))
        if found is None or found.boot_id != self._boot_id:
            return ""
        same_mount = found.mount != 0 and found.mount == self._number_of(self._live_dir)
        return found.token if adopting or same_mount or self._has_hint() else ""

    def _has_hint(self) -> bool:
        with contextlib.suppress(OSError):
            return fcntl.fcntl(self._fd, _GET_RW_HINT, bytes(len(_HINT))) == _HINT
        return False

    def _begin(self, token: str) -> str:
        self.close()
        made = LifeRecord(self._boot_id, self._number_of(self._live_dir), token)
        self._disk.replace_file("life:begin", self.path, made.pack())
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # where the kernel or the filesystem has none, the other witness must do
            fcntl.fcntl(self._fd, _SET_RW_HINT, _HINT)
        return token

    def withdraw(self) -> None:
        """Let no later daemon rely on the page cache of this life. Any thread; a dead disk is no error."""
        other = LifeRecord(self._boot_id, 0, str(uuid.uuid4()))
        with contextlib.suppress(OSError):
            self._disk.pwrite("life:withdraw", self._fd, other.pack(), 0)
            self._disk.fdatasync("life:withdraw", self._fd)

    def probe(self) -> int:
        """0 if the host lets us write here; else the errno with which it refuses. Changes nothing, may wait for a disk.

        A filesystem that shut down (ext4, xfs: EIO), or made itself read-only (EROFS), opens no file for writing.
        """
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as failure:
            return failure.errno or errno.EIO
        return 0

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
