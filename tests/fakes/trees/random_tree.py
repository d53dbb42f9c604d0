"""Directories of every kind of thing, from a seed: names of any bytes, holes, links, ACLs, odd times, nodes."""

from __future__ import annotations

import os
import random
import socket
import stat
import struct

ROOT = os.geteuid() == 0
_TIMES = (-(2**31) * 10**9, -1, -1_500_000_001, 0, 1, 10**18 + 123_456_789, 4_000_000_000 * 10**9 + 7)
"""From the lower end of what a volume holds, by way of 1970, to past 2038."""


def random_tree(root: bytes, seed: int, things: int = 60, *, sockets: bool = False) -> None:
    """Fill the empty directory `root`."""
    Growing(root, seed).grow(things, sockets=sockets)


class Growing:
    """A tree that can also be changed, as an application at work does."""

    def __init__(self, root: bytes, seed: int) -> None:
        self.random, self.root = random.Random(seed), root
        self.directories, self.files = [root], list[bytes]()

    def grow(self, things: int, *, sockets: bool = False) -> None:
        for _ in range(things):
            kind = self.random.choices(
                ("file", "sparse", "directory", "link", "symlink", "fifo", "device"), (30, 6, 12, 8, 8, 3, 3)
            )[0]
            getattr(self, f"_{kind}")()
        if sockets:
            self._socket()
        for path in reversed(self.directories):  # what is in them moves their times
            self._attributes(path)

    def change(self, things: int) -> None:
        """Write into files, replace, rename and remove some, and make a few more."""
        for _ in range(things):
            what = self.random.randrange(5)
            path = self.random.choice(self.files) if self.files else b""
            if not path or what == 0:
                self._file()
            elif what == 1:
                with open(path, "r+b") as file:
                    file.seek(self.random.randrange(9000))
                    file.write(self.random.randbytes(100))
            elif what == 2:
                self.files.remove(path)
                os.unlink(path)
            elif what == 3:
                self.files.remove(path)
                self.files.append(self._name())
                os.rename(path, self.files[-1])
            else:
                os.chmod(path, self.random.randrange(0o1000))

    def _name(self) -> bytes:
        """A free path in some directory."""
        while True:
            length = self.random.choice((1, 2, 8, 8, 8, 40, 101, 255))
            alphabet = self.random.choice((bytes(range(1, 256)), "äöü✓ab".encode(), b"abcdef"))
            name = bytes(self.random.choice(alphabet) for _ in range(length)).replace(b"/", b"_")
            path = os.path.join(self.random.choice(self.directories), name)
            if name not in (b".", b"..") and not os.path.lexists(path):
                return path

    def _file(self) -> None:
        path = self._name()
        with open(path, "wb") as file:
            size = self.random.choice((0, 1, 100, 4096, 5000, 65_536, 200_000))
            file.write(self.random.randbytes(size))
        self.files.append(path)
        self._attributes(path)

    def _sparse(self) -> None:
        path = self._name()
        with open(path, "wb") as file:
            for _ in range(self.random.randrange(4)):
                file.seek(self.random.randrange(40) * 65_536)
                file.write(self.random.randbytes(65_536))
            file.truncate(self.random.choice((2_800_000, 3_000_001, 1 << 32)))
        self.files.append(path)
        self._attributes(path)

    def _directory(self) -> None:
        path = self._name()
        os.mkdir(path)
        self.directories.append(path)
        if ROOT and self.random.random() < 0.3:
            os.setxattr(path, "system.posix_acl_default", acl(self.random))

    def _link(self) -> None:
        if self.files:
            path = self._name()
            os.link(self.random.choice(self.files), path)
            self.files.append(path)

    def _symlink(self) -> None:
        path = self._name()
        os.symlink(self.random.choice((b"nowhere", b"../up", b"\xff\xfe", b"x" * 300)), path)
        if ROOT:
            os.lchown(path, 7, 8)
        self._times(path)

    def _fifo(self) -> None:
        path = self._name()
        os.mkfifo(path)
        self._attributes(path)

    def _device(self) -> None:
        if ROOT:
            path = self._name()
            kind = self.random.choice((stat.S_IFCHR, stat.S_IFBLK))
            os.mknod(path, kind | 0o640, os.makedev(self.random.choice((1, 300)), self.random.choice((3, 70_000))))
            self._attributes(path)

    def _socket(self) -> None:
        here = os.open(self.root, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)

    def _attributes(self, path: bytes) -> None:
        if ROOT and self.random.random() < 0.5:
            os.chown(path, self.random.choice((1, 1000, 3_000_000)), self.random.choice((2, 2_500_000)))
        os.chmod(path, self.random.choice((0o600, 0o644, 0o755, 0o4755, 0o2750, 0o1777, 0o000)))
        is_plain = stat.S_ISREG(os.lstat(path).st_mode) or os.path.isdir(path)
        if is_plain and self.random.random() < 0.4:
            os.setxattr(path, b"user.\xc3\xa9" + b"x" * self.random.randrange(20), self.random.randbytes(50))
        if ROOT and is_plain and self.random.random() < 0.2:
            os.setxattr(path, "system.posix_acl_access", acl(self.random))
            os.setxattr(path, "trusted.note", b"\0\n=")
        self._times(path)

    def _times(self, path: bytes) -> None:
        times = self.random.choice(_TIMES), self.random.choice(_TIMES)
        os.utime(path, ns=times, follow_symlinks=False)


def acl(source: random.Random) -> bytes:
    """A POSIX ACL, as an xattr holds it."""
    nobody, bits = 0xFFFFFFFF, [source.randrange(8) for _ in range(6)]
    entries = [
        (0x01, bits[0], nobody), (0x02, bits[1], 1000), (0x04, bits[2], nobody), (0x08, bits[3], 2000),
        (0x10, bits[4], nobody), (0x20, bits[5], nobody),
    ]  # fmt: skip
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
