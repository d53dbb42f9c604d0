"""The arrow of imports goes down only; live/ and store/ never meet and know no event loop."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"snapfs.cli", "snapfs.commands", "snapfs.doctor", "snapfs.__main__"},
    {"snapfs.daemon", "snapfs.service", "snapfs.status", "snapfs.burial", "snapfs.helper", "snapfs.supervisor"}
    | {"snapfs.signals"},
    {"snapfs.fuse", "snapfs.transfer"},
    {"snapfs.live"},
    {"snapfs.store"},
    {"snapfs.volume"},
    {"snapfs.policy", "snapfs.metrics", "snapfs.audit", "snapfs.systemd"},
    {"snapfs.config", "snapfs.commandline", "snapfs.access"},
    {"snapfs.blocks", "snapfs.errors"},
    {"snapfs"},  # the version
]
"""From the top down. A part imports its own layer and those below."""
APART = [("snapfs.live", "snapfs.store"), ("snapfs.store", "snapfs.live")]
LOOP_FREE = ("snapfs.live", "snapfs.store")
REPLICATOR_MAY = {"snapfs", "snapfs.store", "snapfs.blocks", "snapfs.errors", "snapfs.config", "snapfs.metrics"} | {
    "snapfs.audit",
    "snapfs.access",
    "snapfs.commandline",
    "snapfs.volume",
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere, with what it takes from a package counted as a module of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(module: str) -> str:
    """`snapfs.live.cut` -> `snapfs.live`; a name of the package itself -> `snapfs`."""
    known = {part for layer in LAYERS for part in layer} | {"replicator"}
    while module not in known and "." in module:
        module = module.rpartition(".")[0]
    return module


def rank(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


SOURCES = sorted((ROOT / "snapfs").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[module_of(path) for path in SOURCES])
def test_imports_go_down_only(path: Path) -> None:
    own = part_of(module_of(path))
    for module in imports(path):
        top = module.partition(".")[0]
        assert top != "replicator", f"{own} imports {module}"
        if own in LOOP_FREE:
            assert top not in {"trio", "asyncio"}, f"{own} imports {module}"
        if top == "snapfs":
            other = part_of(module)
            assert rank(own) <= rank(other), f"{own} imports {module}, which is above it"
            assert (own, other) not in APART, f"{own} imports {module}"


def test_every_module_has_a_place() -> None:
    for path in SOURCES:
        part = part_of(module_of(path))
        assert part != "snapfs" or path.name == "__init__.py", f"{module_of(path)} is in no layer"


def test_the_replicator_needs_only_what_both_share() -> None:
    for path in (ROOT / "replicator").rglob("*.py"):
        used = {part_of(module) for module in imports(path) if module.partition(".")[0] == "snapfs"}
        assert used <= REPLICATOR_MAY, f"{module_of(path)} imports {used - REPLICATOR_MAY}"
