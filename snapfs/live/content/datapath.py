"""Which data path a live tree takes: the kinds of its data, in Python or native.

The native kinds (native/, the extension `snapfs.live.content._content`) have the names and meaning of their Python
twins, and can be used without the GIL as well. They are an option: where the extension was not built, Python does the
same. One that was built from other sources is refused (base/native_build.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from snapfs.base import native_build
from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.live.backing.descriptors import Descriptors
from snapfs.live.backing.flush_marks import FlushMarks
from snapfs.live.content.file_states import FileState
from snapfs.live.content.preserve import Frozen, SlotFile
from snapfs.live.intents.dirty_map import CLEAN, DirtyMap
from snapfs.live.intents.intent_log import LogFile

if TYPE_CHECKING:
    from snapfs.live.content._content import Core

CHANGES_NAMES = os.environ.get("SNAPFS_NATIVE_CHANGES", "1") != "0"
"""Whether C changes names as well (native/names_writer.h); tests turn it off, for their child processes."""
DEFAULT = os.environ.get("SNAPFS_DATA_PATH", "auto")
"""The data path where the configuration names none; tests set it, for their child processes in the environment."""


class Need(IntEnum):
    """What a native call needs before it can be done (native/content_api.h)."""

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
    flush_marks: type[FlushMarks]
    core: type[Core] | None

    def taken_over(self, dirty: DirtyMap) -> DirtyMap:
        """A map of Python's kind as one of this."""
        if self.dirty_map is DirtyMap:
            return dirty
        made = self.dirty_map(floor=dirty.floor, reach=dirty.reach, whole=dirty.whole)
        for first, count in dirty.runs():
            made.mark_blocks(first, count)
        return made


PYTHON = DataPath("python", FileState, DirtyMap, CLEAN, Frozen, SlotFile, LogFile, None, FlushMarks, None)


def why_not_native() -> str:
    """Why the native data path cannot be taken; empty if it can."""
    fault = native_build.fault(native_build.CONTENT)
    return fault.words if fault else ""


def choose(wanted: str = "") -> DataPath:
    """The data path for "native", "python" or "auto" (native where it can be). UserError if it cannot be had."""
    wanted = wanted or DEFAULT
    native_build.check(wanted)
    reason = why_not_native()
    if wanted == "python" or (wanted == "auto" and reason):
        return PYTHON
    if reason:
        raise UserError(f"live.data_path is native, but {reason}: install snapfs again with a C compiler at hand")
    return _native()


def _native() -> DataPath:
    from snapfs.live.content import _content as native

    return DataPath(
        "native", native.FileState, native.DirtyMap, native.DirtyMap(), native.Frozen, native.SlotFile, native.LogFile,
        native.Descriptors, native.FlushMarks, native.Core,
    )  # fmt: skip
