"""What became of one path between two snapshots, in lines: counted, or as a patch that git and patch(1) apply.

Folders, devices, pipes and sockets are no matter of a patch: they are lines that begin with `#`.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from snapfs.store.history import text_difference
from snapfs.store.history.tree_lookup import look_up
from snapfs.store.tables.diff import PathChange, diff_paths
from snapfs.store.tables.snapshot import InodeRecord, SnapshotTree

_PLAIN: Final = re.compile(rb"[ !#-\[\]-~]*")
_ESCAPES: Final = {ord("\n"): b"\\n", ord("\t"): b"\\t", ord('"'): b'\\"', ord("\\"): b"\\\\"}
_IN_PATCHES: Final = (stat.S_IFREG, stat.S_IFLNK)


@dataclass(frozen=True, slots=True)
class FileChange:
    """A change of a name with both files; None where there is none.

    `replaced`: what a renamed file took the name of, if that has not gone to another name itself.
    """

    change: PathChange
    a: SnapshotTree
    b: SnapshotTree
    before: InodeRecord | None
    after: InodeRecord | None
    replaced: InodeRecord | None = None

    @classmethod
    def all(cls, a: SnapshotTree, b: SnapshotTree) -> Iterator[FileChange]:
        """In the order of `diff_paths`, whose changes are held in memory. Raises CorruptionError."""
        changes = list(diff_paths(a, b))
        moved = {change.old_path for change in changes if change.old_path is not None}
        for change in changes:
            yield cls._of(change, a, b, moved)

    @classmethod
    def _of(cls, change: PathChange, a: SnapshotTree, b: SnapshotTree, moved: set[bytes]) -> FileChange:
        after = look_up(b, change.path) if change.kind != "removed" else None
        there = look_up(a, change.path) if change.path not in moved else None
        if change.kind in ("changed", "removed"):
            return cls(change, a, b, look_up(a, change.path), after)
        if there is not None and after is not None and stat.S_IFMT(there.mode) != stat.S_IFMT(after.mode):
            there = None  # it is removed by a change of its own
        if change.old_path is None:
            return cls(change, a, b, there, after)
        return cls(change, a, b, look_up(a, change.old_path), after, there)

    @property
    def is_in_patches(self) -> bool:
        return all(stat.S_IFMT(file.mode) in _IN_PATCHES for file in (self.before, self.after) if file)

    def texts(self) -> tuple[bytes, bytes] | None:
        """Both contents, if lines can be compared. Raises CorruptionError."""
        if not self.is_in_patches:
            return None
        if any(file.size > text_difference.TEXT_BYTES for file in (self.before, self.after) if file):
            return None
        old, new = _content(self.a, self.before), _content(self.b, self.after)
        return (old, new) if text_difference.is_text(old) and text_difference.is_text(new) else None

    def counted(self) -> tuple[int, int] | None:
        """(lines added, lines removed), None of what has no lines. Raises CorruptionError."""
        texts = self.texts()
        if texts is None:
            return None
        return text_difference.counted(text_difference.steps(*map(text_difference.lines_of, texts)))

    def patch(self) -> Iterator[bytes]:
        """The patch of this file, in pieces. Raises CorruptionError."""
        if not self.is_in_patches:
            yield self._remark()
            return
        old_path, new_path = self.change.old_path or self.change.path, self.change.path
        if self.replaced is not None:
            gone = PathChange(new_path, "removed", self.replaced.size, self.replaced.mode)
            yield from FileChange(gone, self.a, self.b, self.replaced, None).patch()
        a, b = _quoted(b"a/" + old_path), _quoted(b"b/" + new_path)
        body = b"".join(self._body(a, b))
        if body:  # a change of an owner or a time is none of a patch
            yield b"diff --git %s %s\n" % (a, b)
            yield body

    def _body(self, a: bytes, b: bytes) -> Iterator[bytes]:
        yield from self._modes()
        if self.change.old_path is not None:
            yield b"rename from %s\nrename to %s\n" % (_quoted(self.change.old_path), _quoted(self.change.path))
        texts = self.texts()
        if texts is None:
            if self.change.changed_bytes or self.before is None or self.after is None:
                names = a if self.before else b"/dev/null", b if self.after else b"/dev/null"
                yield b"Binary files %s and %s differ\n" % names
            return
        old, new = map(text_difference.lines_of, texts)
        if old != new:
            yield b"--- %s\n" % (_with_tab(a) if self.before else b"/dev/null")
            yield b"+++ %s\n" % (_with_tab(b) if self.after else b"/dev/null")
            yield from text_difference.hunks(old, new, text_difference.steps(old, new))

    def _modes(self) -> Iterator[bytes]:
        if self.before is None and self.after is not None:
            yield b"new file mode %o\n" % _git_mode(self.after)
        elif self.before is not None and self.after is None:
            yield b"deleted file mode %o\n" % _git_mode(self.before)
        elif self.before is not None and self.after is not None and _git_mode(self.before) != _git_mode(self.after):
            yield b"old mode %o\nnew mode %o\n" % (_git_mode(self.before), _git_mode(self.after))

    def _remark(self) -> bytes:
        file = self.after or self.before
        kind = b"directory" if file is not None and stat.S_ISDIR(file.mode) else b"no regular file"
        origin = b" from %s" % _quoted(self.change.old_path) if self.change.old_path is not None else b""
        return b"# %s %s: %s%s\n" % (self.change.kind.encode(), _quoted(self.change.path), kind, origin)


def _content(tree: SnapshotTree, file: InodeRecord | None) -> bytes:
    if file is None:
        return b""
    return file.target if stat.S_ISLNK(file.mode) else tree.read(file, 0, file.size)


def _git_mode(file: InodeRecord) -> int:
    """The modes that there are in git: of a file, what its owner may execute."""
    return 0o120000 if stat.S_ISLNK(file.mode) else 0o100755 if file.mode & stat.S_IXUSR else 0o100644


def _quoted(path: bytes) -> bytes:
    """As git and patch(1) read a name that has more than printable ASCII."""
    if _PLAIN.fullmatch(path):
        return path
    letters = (_ESCAPES.get(byte) or (bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte) for byte in path)
    return b'"' + b"".join(letters) + b'"'


def _with_tab(name: bytes) -> bytes:
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name
