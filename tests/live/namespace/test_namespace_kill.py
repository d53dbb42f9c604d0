"""An operation that was answered is done, whatever happens to the process then.

The child does a sequence of operations that its seed decides, and reports the number of each when it is answered.
It is killed at a random moment. What is found must be the model after the last reported operation, or after
one more, which was done and could not be reported any more.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest

import snapfs
from snapfs.base.blocks import ROOT_INO, Disk, Ino
from snapfs.live.database import checkpointer
from snapfs.live.namespace.namespace import Namespace

FOLDERS = [b"d0", b"d1", b"d2"]
NAMES = [b"%d" % i for i in range(40)]
Files = dict[tuple[bytes, bytes], int]
"""(folder, name) of a file to the number of the operation that made it, which is its owner too."""


def decide(seed: int, number: int) -> tuple[str, tuple[bytes, bytes], tuple[bytes, bytes]]:
    """Operation `number`: what to do, where, and to where."""
    chance = random.Random(f"{seed}:{number}")
    act = chance.choice(["create", "create", "create", "unlink", "rename", "rename", "link"])
    places = [(chance.choice(FOLDERS), chance.choice(NAMES)) for _ in range(2)]
    return act, places[0], places[1]


def imagine(files: Files, seed: int, number: int) -> Files:
    """The model after operation `number`."""
    act, place, other = decide(seed, number)
    after = dict(files)
    if act == "create" and place not in files:
        after[place] = number
    elif act == "unlink" and place in files:
        del after[place]
    elif act == "rename" and place in files and files[place] != files.get(other):
        after[other] = after.pop(place)
    elif act == "link" and place in files and other not in files:
        after[other] = files[place]
    return after


def do(ns: Namespace, folders: dict[bytes, Ino], seed: int, number: int) -> None:
    """Operation `number` itself; what cannot be done is an answer too."""
    act, (folder, name), (other_folder, other) = decide(seed, number)
    parent, other_parent = folders[folder], folders[other_folder]
    try:
        if act == "create":
            ns.create(parent, name, 0o100644, number, 0)
        elif act == "unlink":
            ns.unlink(parent, name)
        elif act == "rename":
            ns.rename(parent, name, other_parent, other)
        else:
            ns.link(ns.lookup(parent, name).ino, other_parent, other)
    except OSError:
        pass


def found(ns: Namespace) -> Files:
    """What is in the namespace, in the model's words."""
    files: Files = {}
    for folder in ns.readdir(ROOT_INO, 0, 10):
        for entry in ns.readdir(folder.inode.ino, 0, 1000):
            files[folder.name, entry.name] = entry.inode.uid
    return files


def child(path: str, seed: int, first: int) -> None:
    """Operations, with cuts, seals, syncs and checkpoints going on, until killed."""
    checkpointer.CHECKPOINT_AT_BYTES, checkpointer.FORCE_AT_BYTES = 64 << 10, 256 << 10
    ns = Namespace(path, Disk())
    folders = {entry.name: entry.inode.ino for entry in ns.readdir(ROOT_INO, 0, 10)}

    def keep_short() -> None:
        while True:
            ns.checkpoint()
            ns.sync()

    threading.Thread(target=keep_short, daemon=True).start()
    frozen = None
    for number in count(first):
        do(ns, folders, seed, number)
        os.write(1, b"%d\n" % number)
        if number % 97 == 0:
            frozen = ns.cut(ns.epoch)
        if number % 97 == 50 and frozen is not None:
            frozen.close()
            ns.mark_sealed(frozen.epoch)
        if number % 31 == 0:
            ns.remove_orphans(ns.orphans())


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_answered_survives_a_kill(tmp_path: Path, seed: int) -> None:
    path = str(tmp_path / "namespace.db")
    ns = Namespace(path, Disk())
    for name in FOLDERS:
        ns.create(ROOT_INO, name, 0o040755, 0, 0)
    ns.close()
    chance = random.Random(seed)
    files: Files = {}
    first = 1
    for _ in range(6):
        answered = run_and_kill(path, seed, first, chance.uniform(0.15, 0.6))
        for number in range(first, answered + 1):
            files = imagine(files, seed, number)
        ns = Namespace(path, Disk())
        ns.check_invariants()
        there = found(ns)
        ns.close()
        one_more = imagine(files, seed, answered + 1)
        assert there in (files, one_more), answered
        first, files = answered + 2, there
    assert first > 100


def run_and_kill(path: str, seed: int, first: int, after_s: float) -> int:
    """Kill the child some time after its first answer; the number of its last one."""
    environment = os.environ | {"PYTHONPATH": str(Path(snapfs.__file__).parents[2])}
    command = [sys.executable, __file__, path, str(seed), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        head = process.stdout.readline()
        timer = threading.Timer(after_s, process.send_signal, (signal.SIGKILL,))
        timer.start()
        rest = process.stdout.read()
        timer.join()
    whole = (head + rest).rpartition(b"\n")[0]
    return int(whole.split(b"\n")[-1])


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
