"""The page of interfaces names each environment variable and each exit code that the sources have, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from snapfs.base import commandline, errors

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "snapfs-interfaces.7.md").read_text()
BUILDERS = (ROOT / "CONTRIBUTING.md").read_text()
_OURS = re.compile(r"_?SNAPFS_[A-Z_]*[A-Z]|AWS_[A-Z0-9_]*[A-Z0-9]|XDG_[A-Z_]+|_FUSE_COMMFD")
_ROW = re.compile(r"^\| (`.*?`) \|", re.MULTILINE)


def part(page: str, head: str) -> str:
    return page.partition(f"\n## {head}\n")[2].partition("\n## ")[0]


def named(text: str) -> list[str]:
    """The names in the first column of its tables."""
    return [name for row in _ROW.findall(text) for name in re.findall(r"`(\w+)`", row)]


@cache
def sources() -> dict[Path, str]:
    paths = [path for top in ("snapfs", "replicator") for path in (ROOT / top).rglob("*.py")]
    return {path: path.read_text() for path in paths}


@cache
def trees() -> list[ast.Module]:
    """Of the files that have to do with the environment."""
    near = re.compile(rf"environ|getenv|VARIABLE|{_OURS.pattern}")
    return [ast.parse(text) for text in sources().values() if near.search(text)]


def constants(tree: ast.Module) -> dict[str, list[str]]:
    """Names of a module that are given to strings, or to several."""
    found: dict[str, list[str]] = {}
    for node in (each for each in tree.body if isinstance(each, ast.AnnAssign | ast.Assign)):
        target, value = (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]), node.value
        if isinstance(target, ast.Name) and value is not None:
            texts = [each.value for each in ast.walk(value) if isinstance(each, ast.Constant)]
            found[target.id] = [each for each in texts if isinstance(each, str)]
    return found


def is_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in ("os.environ", "environment")


def keys_read(tree: ast.Module) -> Iterator[ast.expr]:
    """What the environment is asked for: environ[KEY], environ.get(KEY), getenv(KEY), KEY in environ."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=place, slice=key) if is_environment(place):
                yield key
            case ast.Call(func=ast.Attribute(value=place, attr="get" | "pop" | "setdefault"), args=[key, *_]):
                if is_environment(place):
                    yield key
            case ast.Call(func=ast.Attribute(attr="getenv"), args=[key, *_]):
                yield key
            case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[place]) if is_environment(place):
                yield key


def variables() -> set[str]:
    """All that the sources read or give, as far as a name stands in them."""
    every: dict[str, list[str]] = {}
    for tree in trees():
        every |= constants(tree)
    found: set[str] = set()
    for tree in trees():
        own = constants(tree)
        for key in keys_read(tree):
            match key:
                case ast.Constant(value=str(name)):
                    found.add(name)
                case ast.Name(id=name):
                    found |= set(own.get(name, []))
                case ast.Attribute(attr=name):
                    found |= set(every[name])
        texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found |= {text for text in texts if isinstance(text, str) and _OURS.fullmatch(text)}
    return found


def test_each_variable_of_the_sources_is_on_the_page_and_no_other() -> None:
    elsewhere = {
        "SNAPFS": "systemd/mount.fuse.snapfs", "_SNAPFS_COMPLETE": "packaging/debian/rules",
        "_SNAPFS_REPLICATOR_COMPLETE": "packaging/debian/rules", "LC_ALL": "snapfs/commands/drills/check_process.py",
        "PATH": "snapfs/transfer/consistency/hook_process.py", "HOME": "snapfs/transfer/consistency/hook_process.py",
        "LANG": "snapfs/transfer/consistency/hook_process.py", "WATCHDOG_USEC": "replicator/agent/drill_schedule.py",
    }  # fmt: skip
    for name, place in elsewhere.items():
        assert name in (ROOT / place).read_text(), name
    rows = named(part(PAGE, "ENVIRONMENT"))
    assert len(rows) == len(set(rows))
    assert set(rows) == variables() | set(elsewhere)


def test_a_variable_that_is_read_is_found() -> None:
    source = 'NAME: Final = "A"\nos.environ.get(NAME)\nos.environ["B"]\n"C" in os.environ\nos.getenv("D", "")\n'
    tree = ast.parse(source)
    found = [ast.unparse(key) for key in keys_read(tree)]
    assert sorted(found) == ["'B'", "'C'", "'D'", "NAME"]
    assert constants(tree)["NAME"] == ["A"]


def test_each_variable_of_tests_and_tools_is_named_for_those_who_build() -> None:
    files = [ROOT / "setup.py", *(path for top in ("tests", "tools") for path in sorted((ROOT / top).rglob("*")))]
    words = re.compile(r"\bSNAPFS_[A-Z0-9_]*[A-Z0-9]\b")
    used: set[str] = set()
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts and path != Path(__file__):
            used |= set(words.findall(path.read_text(errors="replace")))
    others = {"SNAPFS_SOURCES_HASH", "SNAPFS_X"}  # a macro of the compiler, and a variable that a test passes through
    assert set(named(part(BUILDERS, "Environment"))) == used - variables() - others


def codes() -> dict[str, int]:
    own = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    return own | {name: getattr(commandline, name) for name in ("EXIT_INTERRUPTED", "EXIT_UNHEARD")}


def test_each_exit_code_is_on_the_pages_and_no_other() -> None:
    known = sorted(codes().values())
    for page, head in ((PAGE, "EXIT CODES"), ((ROOT / "docs" / "snapfs.1.md").read_text(), "EXIT STATUS")):
        rows = re.findall(r"^\| (\d+) \| \S", part(page, head), re.MULTILINE)
        assert [int(row) for row in rows] == known, head


def test_each_exit_code_is_used() -> None:
    defined = {ROOT / "snapfs/base/errors.py", ROOT / "snapfs/base/commandline.py"}
    used = {
        name for path, text in sources().items() if path not in defined for name in re.findall(r"\bEXIT_[A-Z_]+", text)
    }
    own = {
        name
        for path in defined
        for name in re.findall(r"(?:errors\.|exit_code = |return |, )(EXIT_[A-Z_]+)", sources()[path])
    }
    assert set(codes()) <= used | own


def test_no_command_ends_with_a_number_that_no_constant_names() -> None:
    """`sys.exit(3)` would be one. 0 and what a child ended with are none."""
    ends = re.compile(r"(?:sys\.exit|exceptions\.Exit|SystemExit)\((?!0\))\d+\)")
    assert [str(path) for path, text in sources().items() if ends.search(text)] == []
