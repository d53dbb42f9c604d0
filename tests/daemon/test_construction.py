"""Parts are complete when they are constructed: no attribute of another object is assigned from outside.

Records are no parts: the fields of a dataclass, of a msgspec Struct or of a class with __slots__ and no methods are
filled in by the code whose working memory they are. Any other assignment is a row of FOREIGN, or a fault.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted(path for top in ("snapfs", "replicator") for path in (ROOT / top).rglob("*.py"))

FOREIGN = {
    "entry": "pyfuse3's EntryAttributes has no arguments: a reply is filled in where it is made",
    "_libc.sync_file_range": "ctypes: a function's types are assigned",
    "_libc.syncfs": "ctypes",
    "_libc.fallocate": "ctypes",
    "_libc.renameat2": "ctypes",
    "context": "ssl.SSLContext has no arguments",
    "formatter": "the clock of all log lines",
    "sys.excepthook": "hooks are assigned",
    "threading.excepthook": "hooks are assigned",
    "sys.unraisablehook": "hooks are assigned",
    "self._process": "Popen warns of a process that is left running, unless it has a return code",
    "bar": "tqdm has no method for a total that changes",
    "response": "aiohttp: a response's headers are assigned",
    "state.attempt_number": "tenacity's RetryCallState has no argument for it",
    "frozen": "live/content/preserve.py has a twin in C, whose members are set under the same locks",
}
"""What has no other way, by the expression that names the object or the attribute, each with the reason."""


def trees() -> Iterator[ast.Module]:
    for path in SOURCES:
        yield ast.parse(path.read_text())


def is_mutable_dataclass(node: ast.ClassDef) -> bool:
    decorators = [ast.unparse(each) for each in node.decorator_list]
    return any(each.startswith("dataclass") and "frozen=True" not in each for each in decorators)


def is_struct(node: ast.ClassDef) -> bool:
    return any("Struct" in ast.unparse(base) for base in node.bases)


def slots_of(node: ast.ClassDef) -> list[str]:
    """The slots of a class that has no methods but those of Python's own protocols."""
    methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
    if any(not name.startswith("__") for name in methods):
        return []
    slots = [each for each in node.body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__slots__"]
    return [name for each in slots for name in ast.literal_eval(each.value)]


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    yield from slots_of(node)
    if is_mutable_dataclass(node) or is_struct(node):
        yield from (
            each.target.id
            for each in node.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
        )


RECORD_FIELDS = {
    name for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name in fields_of(node)
}


def assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Every attribute that is assigned, with and without an operator, in a `for`, a `with` or by unpacking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def is_own(target: ast.Attribute) -> bool:
    """Whether it is an attribute of the object whose method assigns it."""
    return isinstance(target.value, ast.Name) and target.value.id == "self"


def may_be_assigned(target: ast.Attribute) -> bool:
    is_foreign = ast.unparse(target.value) in FOREIGN or ast.unparse(target) in FOREIGN
    return is_own(target) or target.attr in RECORD_FIELDS or is_foreign


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_attribute_of_another_object_is_assigned(path: Path) -> None:
    tree = ast.parse(path.read_text())
    others = [
        f"line {target.lineno}: {ast.unparse(target)}" for target in assigned(tree) if not may_be_assigned(target)
    ]
    assert others == []


def test_no_row_of_the_foreign_is_stale() -> None:
    targets = [target for tree in trees() for target in assigned(tree)]
    named = {ast.unparse(each) for target in targets for each in (target, target.value)}
    assert FOREIGN.keys() - named == set()


@pytest.mark.parametrize("room", ["daemon", "control", "fuse"])
def test_where_parts_are_joined_not_even_a_record_is_assigned(room: str) -> None:
    """There an object that is filled in step by step would be a part that is used before it is whole."""
    for path in (ROOT / "snapfs" / room).rglob("*.py"):
        targets = assigned(ast.parse(path.read_text()))
        others = [ast.unparse(each) for each in targets if not is_own(each) and ast.unparse(each.value) != "entry"]
        assert others == [], path


SETATTR = {
    "snapfs/fuse/session/operations.py": "pyfuse3's StatvfsData has no arguments",
    "snapfs/base/commandline.py": "the standard streams of the process are replaced by name",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_setattr_is_no_way_around(path: Path) -> None:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    found = [ast.unparse(call) for call in calls if isinstance(call.func, ast.Name) and call.func.id == "setattr"]
    assert bool(found) == (str(path.relative_to(ROOT)) in SETATTR), found
