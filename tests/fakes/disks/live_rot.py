"""Rot in a live tree as a kill leaves it: one file is damaged, the tree is opened by the next daemon, and judged.

What may come of damage to a file of live/ that holds no bytes of the user's (those have checks of their own):

- refused: CorruptionError or VersionError that names the file, and every byte is where it was;
- lost: names are lost, the mount reports it, and the bytes of all files are in their place or aside;
- reported: all files are compared in full for the next snapshot, which has every change;
- harmless: as if nothing had been.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path

from snapfs.base.blocks import ROOT_INO, Disk
from snapfs.base.errors import CorruptionError, VersionError
from snapfs.live.backing.host_life import HostLife
from snapfs.live.format_versions import refuse_later
from snapfs.live.namespace.namespace import Namespace
from snapfs.live.tree import LiveTree
from tests.fakes.disks import rot

DAMAGES: tuple[rot.Damage, ...] = (rot.flip, rot.zero, rot.truncate, rot.delete)
"""Those that need no older copy."""
FILES, CHANGED = 6, 4
BOOT = "a boot"


def opened(live: Path) -> LiveTree:
    refuse_later(str(live))
    life = HostLife(str(live), Disk(), BOOT, adopting=True)
    token = life.token
    life.close()
    names = Namespace(str(live / "namespace.db"), Disk(), boot_id=token)
    try:
        return LiveTree(str(live), names, Disk(), boot_id=token)
    except BaseException:
        names.close()
        raise


def content(number: int) -> bytes:
    return (b"old %d" % number * 3000)[:5000] + (b"new" if number < CHANGED else b"") + b"end"


def check_reported(live: Path) -> None:
    """All files are in a snapshot; some changed since, in the epochs of two logs."""
    tree = opened(live)
    inos = [tree.mknod(ROOT_INO, b"%d" % n, stat.S_IFREG | 0o600, 0, 0, 0).ino for n in range(FILES)]
    for number, ino in enumerate(inos):
        tree.write(ino, 0, (b"old %d" % number * 3000)[:5000] + (b"..." if number < CHANGED else b"") + b"end")
    tree.cut().finish(True)
    tree.tidy()
    tree.sync_soon()
    for number, ino in enumerate(inos[:CHANGED]):
        if number == CHANGED // 2:
            tree.cut()
        tree.prepare_write(ino)
        tree.write(ino, 5000, b"new")
    tree.write(inos[0], 5000, b"new")  # the block is kept for the cut


def make(live: Path) -> Path:
    """The live tree of a daemon that was killed."""
    live.mkdir()
    child = os.fork()
    if not child:
        check_reported(live)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return live


def names_of(killed: Path) -> list[str]:
    found = (path.relative_to(killed) for path in killed.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "data")


def _judged(live: Path, name: str) -> str:
    """What came of the damage, in a word. AssertionError if it may not be."""
    try:
        tree = opened(live)
    except (CorruptionError, VersionError) as error:
        _check_refusal(live, name, str(error))
        return "refused"
    try:
        tree.check_invariants()
        found = {n: tree.read(attr.ino, 0, 1 << 20) for _, n, attr in tree.readdir(ROOT_INO, 0, 100) if n.isdigit()}
        aside = [path.read_bytes() for path in live.glob("aside/*/data/*")]
        whole = found == {b"%d" % number: content(number) for number in range(FILES)}
        if not whole:
            assert tree.damaged, "names or bytes differ, and no report was made"
            assert all(content(n) in [*found.values(), *aside] for n in range(FILES)), "bytes are gone"
            return "lost"
        cut = tree.cut()
        inos = {tree.lookup(ROOT_INO, b"%d" % number).ino for number in range(CHANGED)}
        changed = set(cut.changed_files())
        cut.finish(True)
        assert inos <= changed, "a change is missing from the next snapshot"
        return "reported" if any("all files are compared" in line for line in tree.recovered) else "harmless"
    finally:
        tree.close()


def _check_refusal(live: Path, name: str, why: str) -> None:
    assert Path(name).name.partition("-")[0] in why, f"the file is not named: {why}"
    data = [path.read_bytes() for path in live.glob("data/*/*")]
    assert all(content(number) in data for number in range(FILES)), "bytes are gone"


def damaged_and_judged(killed: Path, name: str, damage: rot.Damage, seed: int, work: Path) -> str:
    """What came of it, in a word. AssertionError if it may not be."""
    live = work / "damaged-live"
    shutil.rmtree(live, ignore_errors=True)
    shutil.copytree(killed, live)
    damage(random.Random(seed), live / name, None)
    return _judged(live, name)
