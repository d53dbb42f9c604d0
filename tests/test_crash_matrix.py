"""docs/internals/crash-matrix.md has one row for each label of a durable act, and no row for a label that is gone.

The labels are collected from the source: in Python by ast, from the calls of `Disk`'s methods and of every function
with a parameter named `label`; in C from the string literals of the form "area:act". A label whose
beginning the caller passes is collected by its end ("*:segment"), and the beginnings by themselves.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from snapfs.base.blocks import Disk

ROOT = next(each for each in Path(__file__).resolve().parents if (each / "pyproject.toml").exists())
MATRIX = ROOT / "docs" / "internals" / "crash-matrix.md"
ACTS = frozenset(name for name, _ in inspect.getmembers(Disk, inspect.isfunction))
LABEL = re.compile(r"[a-z]+:[a-z_-]+")
END = re.compile(r":[a-z-]+")
PREFIX = re.compile(r"[a-z]+")
C_LITERAL = re.compile(r'"([a-z]+:[a-z_-]+)"')
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
ROW = re.compile(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| (.+?) \|$")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(suffix: str) -> list[Path]:
    found = [path for name in ("snapfs", "replicator") for path in (ROOT / name).rglob(f"*{suffix}")]
    return sorted(path for path in found if "node_modules" not in path.parts)


def name_of(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def label_places(trees: Iterable[ast.AST]) -> dict[str, set[int]]:
    """The functions that take a label, by name, with its place among the arguments (a method's without `self`).

    A class stands for its `__init__`. The methods of `Disk` itself are not among them.
    """
    places: dict[str, set[int]] = {}
    for tree in trees:
        for owner in ast.walk(tree):
            if not isinstance(owner, ast.ClassDef | ast.Module) or getattr(owner, "name", "") == "Disk":
                continue
            for node in owner.body:
                if not isinstance(node, Function):
                    continue
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
                if "label" in names:
                    is_method = names[0] in ("self", "cls")
                    called = owner.name if node.name == "__init__" and isinstance(owner, ast.ClassDef) else node.name
                    places.setdefault(called, set()).add(names.index("label") - is_method)
    return places


def defaults(tree: ast.AST) -> Iterator[str]:
    """The default values of parameters named `label`."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
            with_default = names[len(names) - len(node.args.defaults) :]
            for name, value in zip(with_default, node.args.defaults, strict=True):
                if name == "label" and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def is_act(call: ast.Call) -> bool:
    """Whether a method of a `Disk` is called: of `disk`, of an attribute of that name, or the one or other of two."""
    if isinstance(call.func, ast.IfExp):
        return is_act(ast.Call(call.func.body, [], []))
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ACTS:
        return False
    return re.fullmatch(r"(?:.*\.)?_?disk", ast.unparse(call.func.value)) is not None


def labelled(tree: ast.AST, places: dict[str, set[int]]) -> Iterator[ast.expr]:
    """The arguments that are labels."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if is_act(node):
            yield node.args[0]
            continue
        found = places.get(name_of(node), set())
        if name_of(node) == "__init__":  # super().__init__ of a class whose own one takes a label
            found = {place for name, each in places.items() if name[:1].isupper() for place in each}
        for place in found:
            if place < len(node.args):
                yield node.args[place]
        yield from (each.value for each in node.keywords if each.arg == "label")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """The functions and classes of a module, and the methods of its classes by their qualified names."""
    found: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, Function)}
    return frozenset(found)


@functools.cache
def collect() -> tuple[set[str], set[str]]:
    """The whole labels, and the ends of those that begin with what a caller passed (":segment")."""
    trees = [parsed(path) for path in sources(".py")]
    places = label_places(trees)
    whole, ends, beginnings = set[str](), set[str](), set[str]()
    for tree in trees:
        texts = list(defaults(tree))
        for argument in labelled(tree, places):
            match argument:
                case ast.Constant(value=str(text)):
                    texts.append(text)
                case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=str(end))]) if END.fullmatch(end):
                    ends.add(end)
        whole.update(text for text in texts if LABEL.fullmatch(text))
        beginnings.update(text for text in texts if PREFIX.fullmatch(text))
    for suffix in (".c", ".h"):
        for path in sources(suffix):
            whole.update(C_LITERAL.findall(C_COMMENT.sub("", path.read_text(encoding="utf-8"))))
    return whole | {f"*{end}" for end in ends}, beginnings


def rows() -> list[tuple[str, str, str, str]]:
    found = []
    for line in MATRIX.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            row = ROW.match(line)
            assert row is not None, f"not a row of four cells: {line}"
            found.append((row[1], row[2], row[3], row[4]))
    return found


def test_each_label_of_a_durable_act_has_a_row_and_no_row_is_stale() -> None:
    labels, _ = collect()
    listed = [label for label, *_ in rows()]
    assert len(listed) == len(set(listed)), "a label has two rows"
    assert labels - set(listed) == set(), f"add a row to {MATRIX.name} for each of these"
    assert set(listed) - labels == set(), f"no source has these labels any more: remove their rows from {MATRIX.name}"


def test_each_beginning_of_a_label_is_named_in_the_matrix() -> None:
    """`*:segment` stands for `seal:segment`, `part:segment` and so on: the page lists which there are."""
    _, beginnings = collect()
    text = MATRIX.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("Beginnings: "))
    assert set(re.findall(r"`([a-z]+)`", line)) == beginnings


def test_each_row_names_a_function_that_exists() -> None:
    """The last cell names who repairs it, as `path: function`."""
    for label, *_, repairs in rows():
        named = re.findall(r"`((?:snapfs|replicator)/[a-z_/]+\.py): ([A-Za-z_.]+)`", repairs)
        assert named or repairs == "nobody: nothing is left to repair", f"{label}: {repairs}"
        for path, function in named:
            assert function in defined(ROOT / path), f"{label}: {path} has no {function}"


def test_every_call_of_a_disk_has_a_label_that_is_collected() -> None:
    """Else the collection would be blind to it: a label is a literal, or a parameter or attribute called label."""
    for path in sources(".py"):
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.Call) or not is_act(node):
                continue
            first = node.args[0]
            is_literal = isinstance(first, ast.Constant) and LABEL.fullmatch(str(first.value))
            is_built = isinstance(first, ast.JoinedStr) and ast.unparse(first.values[0]).find("label") >= 0
            is_passed = isinstance(first, ast.Name) and first.id == "label"
            assert is_literal or is_built or is_passed, f"{path}:{node.lineno}: {ast.unparse(node)}"
