"""store/suspects: objects that `verify` found damaged. Nothing new is built on one of them.

At a mirror the next commit wants them anew (receiver.py); in a volume of one's own the next seal brings them back from
the live tree, or stores everything anew (transfer/repair/repair.py).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from snapfs.base.blocks import Disk, Number
from snapfs.base.json_file import JsonFile

SUSPECTS: Final = "suspects"


class Suspects(msgspec.Struct, frozen=True):
    """The file. `numbers` in hex."""

    numbers: list[str]
    format: int = 1

    @staticmethod
    def of_lines(data: bytes) -> Suspects:
        """The form of the time before: a number a line. ValueError for anything else."""
        if re.fullmatch(rb"(?:[0-9a-f]+\n)+", data) is None:
            raise ValueError("it is no list of numbers")
        return Suspects(data.decode("ascii").split())


SUSPECTS_FILE: Final = JsonFile(
    "list of suspects", Suspects, check=lambda found: [int(number, 16) for number in found.numbers],
    old=Suspects.of_lines, advice="`verify` makes it anew",
)  # fmt: skip


def read_suspects(store_dir: str) -> list[Number]:
    """[] if there are none. Raises CorruptionError, VersionError, OSError."""
    found = SUSPECTS_FILE.read(os.path.join(store_dir, SUSPECTS))
    return [] if found is None else [Number(int(number, 16)) for number in found.numbers]


def has_suspects(store_dir: str) -> bool:
    """Whether there is a list at all."""
    return os.path.lexists(os.path.join(store_dir, SUSPECTS))


def write_suspects(store_dir: str, numbers: Iterable[int], disk: Disk) -> None:
    """Durable on return. Raises OSError."""
    suspects = Suspects([f"{number:x}" for number in numbers])
    SUSPECTS_FILE.write("verify:suspects", os.path.join(store_dir, SUSPECTS), suspects, disk)


def remove_suspects(store_dir: str, disk: Disk) -> None:
    """Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        disk.unlink("suspects:remove", os.path.join(store_dir, SUSPECTS))
