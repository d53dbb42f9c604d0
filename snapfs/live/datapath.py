"""Which data path a live tree takes: the kinds of its data, in Python or native.

The native kinds (native/, the extension `snapfs.live._content`) have the names and meaning of their Python twins, and
can be used without the GIL as well. They are an option: where the extension was not built, Python does the same.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from snapfs.blocks import Disk
from snapfs.errors import UserError
from snapfs.live.descriptors import Descriptors
from snapfs.live.dirty import CLEAN, DirtyMap
from snapfs.live.intents import LogFile
from snapfs.live.preserve import Frozen, SlotFile
from snapfs.live.states import FileState

if TYPE_CHECKING:
    from snapfs.live._content import Core

DEFAULT = os.environ.get("SNAPFS_DATA_PATH", "auto")
"""What is taken where nobody says; tests set it, for their child processes in the environment."""


class Need(IntEnum):
    """What a native call asks for first (native/content_api.h)."""

    LOAD = 1
    BEGIN = 2
    PYTHON = 3
    NAMES = 4
    CLOSED = 5


@dataclass(frozen=True, slots=True)
class DataPath:
    name: str
    file_state: type[FileState]
    dirty_map: type[DirtyMap]
    clean: DirtyMap
    frozen: type[Frozen]
    slot_file: Callable[[str, Disk], SlotFile]
    log_file: Callable[[int, Disk], LogFile]
    descriptors: Callable[[str, int], Descriptors] | None
    core: type[Core] | None

    def taken_over(self, dirty: DirtyMap) -> DirtyMap:
        """A map of Python's kind as one of this."""
        if self.dirty_map is DirtyMap:
            return dirty
        made = self.dirty_map(floor=dirty.floor, reach=dirty.reach, whole=dirty.whole)
        for first, count in dirty.runs():
            made.mark_blocks(first, count)
        return made


PYTHON = DataPath("python", FileState, DirtyMap, CLEAN, Frozen, SlotFile, LogFile, None, None)


def why_not_native() -> str:
    """Why the native data path cannot be taken; empty if it can."""
    try:
        importlib.import_module("snapfs.live._content")
    except ImportError as failure:
        return f"the extension snapfs.live._content is not built ({failure})"
    return ""


def choose(wanted: str = "") -> DataPath:
    """The data path for "native", "python" or "auto" (native where it can be). UserError if it cannot be had."""
    wanted = wanted or DEFAULT
    reason = why_not_native()
    if wanted == "python" or (wanted == "auto" and reason):
        return PYTHON
    if reason:
        raise UserError(f"live.data_path is native, but {reason}: install snapfs again with a C compiler at hand")
    return _native()


def _native() -> DataPath:
    from snapfs.live import _content as native

    return DataPath(
        "native", native.FileState, native.DirtyMap, native.DirtyMap(), native.Frozen, native.SlotFile, native.LogFile,
        native.Descriptors, native.Core,
    )  # fmt: skip
