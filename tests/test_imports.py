"""Imports go down only, by sub-package; rooms stay small enough to be held in the head; one name means one thing."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
    "snapfs.__main__",
    "snapfs.cli",
    "snapfs.supervisor",
    "snapfs.api",
    "snapfs.commands",
    "snapfs.commands.drills",
    "snapfs.commands.forks",
    "snapfs.commands.moving",
    "snapfs.commands.mounting",
    "snapfs.commands.warm",
    "snapfs.commands.groups",
    "snapfs.commands.checks",
    "snapfs.commands.history",
    "snapfs.commands.schemas",
    "snapfs.commands.overview",
    "snapfs.commands.support",
    "snapfs.daemon",
    "snapfs.daemon.supervision",
    "snapfs.control",
    "snapfs.control.groups",
    "snapfs.fuse.session",
    "snapfs.fuse.handlers",
    "snapfs.fuse.kernel",
    "snapfs.fuse.virtual",
    "snapfs.fuse.nodes",
    "snapfs.transfer.move_in",
    "snapfs.transfer.move_out",
    "snapfs.transfer.restore",
    "snapfs.transfer.repair",
    "snapfs.transfer.failover",
    "snapfs.transfer.seal",
    "snapfs.transfer.consistency",
    "snapfs.transfer.retention",
    "snapfs.transfer.lazy",
    "snapfs.transfer.sources",
    "snapfs.transfer.common",
    "snapfs.live",
    "snapfs.live.recovery",
    "snapfs.live.lazy",
    "snapfs.live.content",
    "snapfs.live.residency",
    "snapfs.live.intents",
    "snapfs.live.namespace",
    "snapfs.live.writer",
    "snapfs.live.database",
    "snapfs.live.backing",
    "snapfs.store.bucket",
    "snapfs.store.ingest",
    "snapfs.store.repair",
    "snapfs.store.history",
    "snapfs.store.repository",
    "snapfs.store.lazy",
    "snapfs.store.crypto",
    "snapfs.store.protocol",
    "snapfs.store.audit",
    "snapfs.store.log",
    "snapfs.store.gates",
    "snapfs.store.tables",
    "snapfs.store.objects",
    "snapfs.base.counting",
    "snapfs.base.volumes",
    "snapfs.base.schedule",
    "snapfs.base.settings",
    "snapfs.base",
    "snapfs.base.logs",
    "snapfs",
]
"""The rooms of snapfs from the top down. A room imports itself and rooms below it."""
EARLIER = {"snapfs.cli", "snapfs.supervisor"}
"""What a supervisor that an earlier version started runs and imports when it is upgraded."""
REPLICATOR_ORDER = [
    "replicator.__main__",
    "replicator.commands",
    "replicator.agent",
    "replicator.console",
    "replicator.console.views",
    "replicator.mirror",
    "replicator.targets",
    "replicator.source",
    "replicator.volumes",
    "replicator",
]
APART = [("snapfs.live", "snapfs.store")]
"""Packages that never meet: what one needs of the other is passed in by a room above both."""
LOOP_FREE = ("snapfs.live", "snapfs.store", "snapfs.base")
REPLICATOR_MAY = ("snapfs.store", "snapfs.base", "snapfs")
MODULES_A_ROOM = 16
PACKAGES_ONLY = ("snapfs.fuse", "snapfs.transfer", "snapfs.store")
"""Packages that hold rooms, and no module of their own."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_of(path): path for top in ("snapfs", "replicator") for path in sorted((ROOT / top).rglob("*.py"))}
ROOMS = {*ORDER, *REPLICATOR_ORDER}


def imports(path: Path) -> set[str]:
    """Every module that the file imports anywhere; a name taken from a package counts as a module of it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    """`snapfs.live.intents.intents` -> `snapfs.live.content`; a name of the package itself -> `snapfs`."""
    while module not in ROOMS and "." in module:
        module = module.rpartition(".")[0]
    return module


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_only(module: str) -> None:
    order = ORDER if inside(module, "snapfs") else REPLICATOR_ORDER
    own = room_of(module)
    for other in imports(SOURCES[module]):
        if inside(own, "snapfs"):
            assert not inside(other, "replicator"), f"{module} imports {other}"
        if any(inside(own, package) for package in LOOP_FREE):
            assert other.partition(".")[0] not in {"trio", "asyncio"}, f"{module} imports {other}"
        if inside(other, order[-1]):
            room = room_of(other)
            assert order.index(own) <= order.index(room), f"{module} imports {other}, and {room} is above {own}"
        elif inside(other, "snapfs"):
            assert any(inside(room_of(other), package) for package in REPLICATOR_MAY), f"{module} imports {other}"
        for one, another in APART:
            for here, there in ((one, another), (another, one)):
                assert not (inside(module, here) and inside(other, there)), f"{module} imports {other}"


def test_each_room_is_there_and_each_module_is_in_one() -> None:
    packages = {name for name, path in SOURCES.items() if path.name == "__init__.py"}
    assert ROOMS - packages == {"snapfs.__main__", "replicator.__main__", *EARLIER}
    assert packages - ROOMS == set(PACKAGES_ONLY)
    homes = ROOMS - {"snapfs", "replicator"}
    assert not [name for name in set(SOURCES) - packages - ROOMS if name.rpartition(".")[0] not in homes]


def test_a_room_can_be_held_in_the_head() -> None:
    sizes = Counter(module.rpartition(".")[0] for module, path in SOURCES.items() if path.name != "__init__.py")
    assert {room: size for room, size in sizes.items() if size > MODULES_A_ROOM} == {}


def test_no_two_modules_have_one_base_name() -> None:
    stems = (path.stem for module, path in SOURCES.items() if module not in EARLIER)
    names = Counter(stem for stem in stems if not stem.startswith("__"))
    assert [name for name, times in names.items() if times > 1] == []


def public_classes() -> Iterator[str]:
    for path in SOURCES.values():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield node.name


def test_no_two_public_classes_have_one_name() -> None:
    assert [name for name, times in Counter(public_classes()).items() if times > 1] == []
