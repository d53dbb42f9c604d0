"""Every durable act goes through `Disk` (snapfs/base/blocks.py): elsewhere no system call may rename, unlink or sync.

The calls are collected by ast: functions of `os` and `shutil`, methods of `Path`, and `open` for writing. EXCEPTIONS
has those that are not durable acts, by file and function, each with the reason; one that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT = next(each for each in Path(__file__).resolve().parents if (each / "pyproject.toml").exists())
DISK = "snapfs/base/blocks.py"

OS: Final = frozenset({
    "rename", "renames", "replace", "unlink", "remove", "rmdir", "removedirs", "link", "symlink", "mkdir", "makedirs",
    "mkfifo", "mknod", "truncate", "ftruncate", "fsync", "fdatasync", "sync",
})  # fmt: skip
SHUTIL: Final = frozenset({"rmtree", "move", "copy", "copy2", "copyfile", "copytree"})
PATH: Final = frozenset({
    "rename", "replace", "unlink", "rmdir", "hardlink_to", "symlink_to", "write_text", "write_bytes", "touch", "mkdir",
})  # fmt: skip
LIBC: Final = frozenset({"syncfs", "fsync", "fdatasync", "renameat2", "sync_file_range"})

EXCEPTIONS: Final = {
    ("replicator/agent/agent.py", "locked"): "who holds the lock, a text in the lock file for people",
    ("snapfs/base/volumes/volume.py", "_write_holder"): "the writer_id of the lock, a text in the lock file for people",
    ("snapfs/commands/checks/filesystem_checks.py", "_abilities"): "tries out the host in a temporary folder",
    ("snapfs/commands/checks/volume_checks.py", "_database"): "looks at a copy in a temporary folder",
    ("snapfs/commands/drills/check_process.py", "_popen"): "the output of a check, in a drill's temporary folder",
    ("snapfs/commands/drills/mariadb_check.py", "_check"): "as in postgres_check",
    ("snapfs/commands/drills/postgres_check.py", "_check_cluster"): "a drill's temporary folder",
    ("snapfs/commands/drills/redis_check.py", "_check"): "as in postgres_check",
    ("snapfs/commands/drills/scratch_mount.py", "_remove"): "a drill's temporary folder",
    ("snapfs/commands/drills/scratch_mount.py", "mounted_scratch"): "a drill's temporary folder",
    ("snapfs/commands/forks/discarding.py", "_remove_mountpoint"): "an empty folder of the user's",
    ("snapfs/commands/forks/fork_making.py", "_folders"): "an empty folder of the user's, the mountpoint",
    ("snapfs/commands/mounting/warm_server.py", "__init__"): "a socket, for this run of the host",
    ("snapfs/commands/mounting/warm_server.py", "run"): "a socket, for this run of the host",
    ("snapfs/commands/warm/warm_key.py", "make_folder"): "the folder of sockets, for this run of the host",
    ("snapfs/commands/mounting/serve_mount.py", "_wait_for_release"): "/dev/null",
    ("snapfs/commands/support/create_volume.py", "_names"): "looks at a copy in a temporary folder",
    ("snapfs/daemon/supervision/child_process.py", "prefer_for_oom"): "a switch of the kernel in /proc",
    ("snapfs/daemon/supervision/descriptor_store.py", "keep"): "a file in memory that the service manager keeps",
    ("snapfs/fuse/kernel/writeback.py", "_syncfs"): "flushes the mount, whose daemon makes its own acts durable",
    ("snapfs/fuse/session/mounted_rollback.py", "_correct"): "a file of the mount: the daemon receives it as a request",
    ("snapfs/live/backing/host_filesystem.py", "probe_limits"): "a file without content that lives for a moment",
    ("snapfs/live/backing/host_filesystem.py", "_max_bytes"): "a file that has lost its name already",
    ("snapfs/live/content/cached_writes.py", "give"): "room that is kept free: its length outlives a daemon alone",
    ("snapfs/live/content/cached_writes.py", "give_all"): "room that is kept free: its length outlives a daemon alone",
    ("snapfs/live/content/truncates.py", "truncate"): "bytes of the application; the intent log covers them",
    ("snapfs/live/content/truncates.py", "lengthen"): "bytes of the application; the intent log covers them",
    ("snapfs/live/content/truncates.py", "_shrink"): "bytes of the application; the intent log covers them",
    ("snapfs/live/intents/intents_mark.py", "__init__"): "not synced; a mark of another size counts nothing",
    ("snapfs/live/database/reserve.py", "give_some"): "room that is kept free; nothing reads it",
    ("snapfs/live/lazy/file_maker.py", "write_all"): "a staged file; `hydrate:bytes` makes it durable",
    (
        "snapfs/live/lazy/residency_recovery.py",
        "_settle_unknown",
    ): "a backing file; `residency:compared` makes it durable",
    ("snapfs/store/repair/duplicate_store.py", "_link_or_copy"): "a copy of a segment; `clone:copy` makes it durable",
    ("snapfs/transfer/common/store_source.py", "fill"): "a staged file; its user makes it durable",
    ("snapfs/transfer/move_in/file_copies.py", "_finished"): "a copy of an import; `import:sync` makes it durable",
    ("snapfs/transfer/restore/rebuild.py", "run"): "the restored tree; `restore:sync` makes all of it durable",
    ("snapfs/transfer/restore/rebuild.py", "_build"): "as `run`",
    ("snapfs/transfer/restore/rebuild.py", "_begin_with"): "as `run`",
    ("snapfs/transfer/restore/undelete.py", "_make_folders"): "a folder of a mount, as any process makes one there",
    ("snapfs/transfer/restore/undelete.py", "undelete"): "such a folder, empty, after a failure",
    ("snapfs/transfer/restore/rebuild.py", "_directory_made"): "as `run`",
    ("snapfs/transfer/restore/rebuild.py", "_make"): "as `run`",
    ("snapfs/transfer/restore/rebuild.py", "_link"): "as `run`",
    ("snapfs/transfer/restore/rebuild.py", "_node"): "as `run`",
    ("snapfs/transfer/restore/rebuild.py", "_sized_file"): "as `run`",
    ("snapfs/transfer/restore/rollback.py", "_stage"): "a staged file; `rollback:stage` makes it durable",
    ("snapfs/transfer/restore/rollback.py", "_patch"): "a staged file; `rollback:stage` makes it durable",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def raw_acts(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(function, line, what) of each use of a system call that changes names, sizes or durability.

    A use, not only a call: ``partial(os.unlink, path)`` counts.
    """
    imports_path = any(
        isinstance(node, ast.ImportFrom)
        and node.module == "pathlib"
        and any(each.name == "Path" for each in node.names)
        for node in ast.walk(tree)
    )
    yield from _in(tree, "<module>", imports_path)


def _in(node: ast.AST, function: str, imports_path: bool) -> Iterator[tuple[str, int, str]]:
    if isinstance(node, Function):
        function = node.name
    what = _raw(node, imports_path)
    if what:
        yield function, node.lineno, what  # type: ignore[attr-defined]
    for child in ast.iter_child_nodes(node):
        yield from _in(child, function, imports_path)


def _raw(node: ast.AST, imports_path: bool) -> str:
    what = ""
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in OS:
            what = f"os.{name}"
        case ast.Attribute(value=ast.Name(id="shutil"), attr=name) if name in SHUTIL:
            what = f"shutil.{name}"
        case ast.ImportFrom(module="os" | "shutil", names=names) if any(each.name in OS | SHUTIL for each in names):
            what = "an import of a system call by its bare name"
        case ast.Attribute(value=value, attr=name) if name in LIBC and re.search("libc|CDLL", ast.unparse(value)):
            what = f"libc.{name}"
        case ast.Call(func=ast.Name(id="open")) if _writes(node):
            what = "open for writing"
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if imports_path and _is_path(value) and name in PATH:
            what = f"Path.{name}"
    return what


def _writes(call: ast.Call) -> bool:
    modes = [*call.args[1:2], *(each.value for each in call.keywords if each.arg == "mode")]
    return any(not isinstance(mode, ast.Constant) or bool(set("wax+") & set(mode.value)) for mode in modes)


def _is_path(value: ast.expr) -> bool:
    """Whether it is a `Path(...)`, or `Path(...) / name`; the names of variables do not count."""
    while isinstance(value, ast.BinOp):
        value = value.left
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Path"


def found() -> dict[tuple[str, str], list[str]]:
    acts: dict[tuple[str, str], list[str]] = {}
    for room in ("snapfs", "replicator"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name == DISK:
                continue
            for function, line, what in raw_acts(ast.parse(path.read_text(encoding="utf-8"))):
                acts.setdefault((name, function), []).append(f"{name}:{line}: {what} in {function}")
    return acts


def test_no_durable_act_is_made_outside_of_disk() -> None:
    wrong = [line for place, lines in found().items() if place not in EXCEPTIONS for line in lines]
    assert not wrong, "use a method of Disk with a label (snapfs/base/blocks.py):\n" + "\n".join(wrong)


def test_no_exception_is_stale() -> None:
    assert set(EXCEPTIONS) - set(found()) == set()


def test_the_collection_finds_each_way_to_write_it() -> None:
    source = """
import os, shutil
from os import fsync
from pathlib import Path
def f():
    os.rename(a, b)
    partial(os.unlink, a)
    shutil.rmtree(a)
    open(a, "wb")
    open(a, mode="r+")
    Path(a).unlink()
    (Path(a) / b).write_text("")
    _libc.syncfs(fd)
    open(a, "rb"), open(a), text.replace(a, b), disk.rename("label:act", a, b)
"""
    assert [line for _, line, _ in raw_acts(ast.parse(source))] == [3, 6, 7, 8, 9, 10, 11, 12, 13]
