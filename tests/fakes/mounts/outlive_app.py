"""An application that must not notice the death of the daemon under it: each of its parts is a process of its own.

    python -m tests.fakes.mounts.outlive_app PART FOLDER SEED

prints a line when it begins, works in FOLDER until its standard input ends, checks each answer against a model of its
own, and prints one line of JSON: `operations`, the longest `stall_s`, and what a checker needs. Any error, also a wrong
answer, is a traceback and exit code 1.

The part `names` does a sequence that its seed decides, one change of names after another: what the folder holds after
the first k of them is known (`imagine`), so a snapshot of it must equal one of these states.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.fakes.mounts.held_files import HeldFile, change, new_file

NAMES = [f"n{number}" for number in range(24)]
State = dict[str, tuple[str, str]]
"""Name to (kind, what distinguishes it from others): the number of the operation that made a file, a link's target."""


# -- names: decided by a seed, done exactly once


def decide(seed: int, number: int, state: State) -> tuple[str, str, str]:
    """Operation `number` on this state: always one that must succeed."""
    chance = random.Random(f"{seed}:{number}")
    taken, free = sorted(state), [name for name in NAMES if name not in state]
    files = [name for name in taken if state[name][0] == "file"]
    choices = []
    if free:
        choices += [("create", chance.choice(free), "")] * 3 + [("mkdir", chance.choice(free), "")]
        choices += [("symlink", chance.choice(free), f"target-{number}")]
        if taken:
            choices += [("rename", chance.choice(taken), chance.choice(free))] * 2
        if files:
            choices += [("link", chance.choice(files), chance.choice(free))]
    if files:
        choices += [("unlink", chance.choice(files), "")] * 2
    if len(files) > 1:
        choices += [("replace", *chance.sample(files, 2))]
    if len(taken) > 1:
        choices += [("exchange", *chance.sample(taken, 2))]
    folders = [name for name in taken if state[name][0] == "dir"]
    links = [name for name in taken if state[name][0] == "link"]
    choices += [("rmdir", chance.choice(folders), "")] if folders else []
    choices += [("unlink", chance.choice(links), "")] if links else []
    return chance.choice(choices)


def imagine(state: State, number: int, act: str, one: str, other: str) -> State:
    """The state after the operation."""
    after = dict(state)
    if act in ("create", "mkdir", "symlink"):
        kind = {"create": "file", "mkdir": "dir", "symlink": "link"}[act]
        after[one] = (kind, other if act == "symlink" else str(number))
    elif act in ("unlink", "rmdir"):
        del after[one]
    elif act == "rename" or (act == "replace" and state[one] != state[other]):
        after[other] = after.pop(one)
    elif act == "exchange":
        after[one], after[other] = after[other], after[one]
    elif act == "link":
        after[other] = after[one]
    return after


def states(seed: int, count: int) -> Iterator[State]:
    """The state before any operation, after the first, ... after the `count`-th."""
    state: State = {}
    yield state
    for number in range(count):
        state = imagine(state, number, *decide(seed, number, state))
        yield state


def look(folder: str) -> State:
    """What a folder holds, in the words of the model. A file may still be empty: then its number is unknown."""
    found: State = {}
    for entry in os.scandir(folder):
        if entry.is_symlink():
            found[entry.name] = ("link", os.readlink(entry.path))
        elif entry.is_dir():
            found[entry.name] = ("dir", "")
        else:
            with open(entry.path) as file:
                found[entry.name] = ("file", file.read())
    return found


def fits(found: State, state: State) -> bool:
    """Whether a folder found so can be this state: names and kinds are exact, an empty file may be any."""
    return found.keys() == state.keys() and all(
        kind == state[name][0] and (kind == "dir" or what in ("", state[name][1]))
        for name, (kind, what) in found.items()
    )


def do(folder: str, number: int, act: str, one: str, other: str, chance: random.Random) -> None:
    first, second = f"{folder}/{one}", f"{folder}/{other}"
    if act == "create":
        fd = os.open(first, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        os.write(fd, str(number).encode())
        if chance.random() < 0.3:
            os.fsync(fd)
        os.close(fd)
    elif act == "mkdir":
        os.mkdir(first)
    elif act == "symlink":
        os.symlink(other, first)
    elif act == "unlink":
        os.unlink(first)
    elif act == "rmdir":
        os.rmdir(first)
    elif act == "link":
        os.link(first, second)
    elif act == "exchange":
        exchange(first, second)
    else:
        os.rename(first, second)


def exchange(first: str, second: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, first.encode(), -100, second.encode(), 2):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), first, None, second)


def names(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    state: State = {}
    chance = random.Random(seed)
    number = 0
    while clock.goes_on():
        act = decide(seed, number, state)
        clock.timed(lambda number=number, act=act: do(folder, number, *act, chance))  # type: ignore[misc]
        state = imagine(state, number, *act)
        number += 1
        if number % 50 == 0:
            assert fits(look(folder), state), (number, look(folder), state)
    assert fits(look(folder), state)
    return {"count": number}


# -- the other parts


def log(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Appends lines through several descriptors, fsyncs, reads back: each line once, in order."""
    path = f"{folder}/log"
    fds = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600) for _ in range(3)]
    chance, number = random.Random(seed), 0
    while clock.goes_on():
        line = f"{number}:{'x' * chance.randrange(1, 400)}\n".encode()
        assert clock.timed(lambda line=line: os.write(chance.choice(fds), line)) == len(line)  # type: ignore[misc]
        number += 1
        if chance.random() < 0.1:
            clock.timed(lambda: os.fsync(fds[0]))
        if chance.random() < 0.01:
            check_log(path, number)
    check_log(path, number)
    return {"count": number}


def check_log(path: str, count: int) -> None:
    with open(path) as file:
        assert [int(line.partition(":")[0]) for line in file] == list(range(count))


def held(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Holds unlinked files, writes into them anywhere, truncates them, and reads everything back (held_files.py)."""
    chance = random.Random(seed)
    files: list[HeldFile] = []
    for number in itertools.count():
        if not clock.goes_on():
            break
        if len(files) < 6:
            files.append(new_file(f"{folder}/held-{number}", clock.timed))
        file = chance.choice(files)
        change(file, number, chance)
        file.check(number)
        assert os.fstat(file.fd).st_nlink == 0
        if chance.random() < 0.02:
            files.remove(file)
            os.close(file.fd)
    for file in files:
        file.check(number)
    assert os.listdir(folder) == []
    return {"rounds": number}


def counter(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Several of these count in one file under flock(2) and lockf(3); the sum must be exact."""
    fd = os.open(f"{folder}/counter", os.O_CREAT | os.O_RDWR)
    mine = 0
    lock = fcntl.flock if seed % 2 else fcntl.lockf
    outer = os.open(f"{folder}/lock", os.O_CREAT | os.O_RDWR)
    while clock.goes_on():
        fcntl.flock(outer, fcntl.LOCK_EX)
        lock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 64, 0) or b"0")
        clock.timed(lambda value=value: os.pwrite(fd, b"%012d" % (value + 1), 0))  # type: ignore[misc]
        lock(fd, fcntl.LOCK_UN)
        fcntl.flock(outer, fcntl.LOCK_UN)
        mine += 1
        time.sleep(0.001)
    return {"count": mine}


def stream(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Reads a large directory slowly while names beside it come and go: what stays is seen once."""
    stays = {f"stays-{number:04}" for number in range(400)}
    for name in sorted(stays):
        os.close(os.open(f"{folder}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    rounds = 0
    while clock.goes_on():
        seen: list[str] = []
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                seen.append(entry.name)
                if number % 40 == 0:
                    passing = f"{folder}/passing-{seed}-{rounds}-{number}"
                    clock.timed(lambda passing=passing: os.mkdir(passing))  # type: ignore[misc]
                    time.sleep(0.01)
                    clock.timed(lambda passing=passing: os.rmdir(passing))  # type: ignore[misc]
        assert len(seen) == len(set(seen)), "a name twice"
        assert stays <= set(seen), sorted(stays - set(seen))
        rounds += 1
    assert set(os.listdir(folder)) == stays
    return {"rounds": rounds}


def attributes(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Modes, times and extended attributes, set and looked at."""
    path, chance = f"{folder}/file", random.Random(seed)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    keys: dict[str, bytes] = {}
    while clock.goes_on():
        mode, key, value = chance.randrange(0o1000), f"user.k{chance.randrange(8)}", chance.randbytes(20)
        clock.timed(lambda mode=mode: os.chmod(path, mode))  # type: ignore[misc]
        if key in keys and chance.random() < 0.5:
            clock.timed(lambda key=key: os.removexattr(path, key))  # type: ignore[misc]
            del keys[key]
        else:
            clock.timed(lambda key=key, value=value: os.setxattr(path, key, value))  # type: ignore[misc]
            keys[key] = value
        assert os.stat(path).st_mode & 0o7777 == mode
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == keys
    return {}


def commands(clock: Clock, folder: str, seed: int) -> dict[str, Any]:
    """Makes snapshots by name through the control file: each exactly once, and each reply is its own.

    One that is refused because four daemons in a row were killed over it (seal_attempts.py) is requested again.
    """
    made: list[str] = []
    refused = 0
    control = f"{os.path.dirname(folder)}/.snapfs/control"
    while clock.goes_on():
        fd = os.open(control, os.O_RDWR)
        name = f"by-{seed}-{len(made)}"
        failed = clock.timed(lambda fd=fd, name=name: _command(fd, f"snapshot {name}"))  # type: ignore[misc]
        reply = json.loads(os.read(fd, 65536))
        os.close(fd)
        if failed and "daemons in a row were killed" in reply["error"]:
            refused += 1
            continue
        assert not failed, reply
        assert reply["snapshot"]["name"] == name
        made.append(name)
        time.sleep(0.05)
    return {"made": made, "refused": refused}


def _command(fd: int, command: str) -> int:
    """Write a command; the errno that it failed with, which its reply explains, or 0."""
    try:
        os.write(fd, command.encode())
    except OSError as failure:
        return failure.errno or errno.EIO
    return 0


class Clock:
    """Whether to go on, and how long an operation took at most."""

    def __init__(self) -> None:
        self.operations = 0
        self.stall_s = 0.0

    def goes_on(self) -> bool:
        """The runner decides: it closes the pipe that is the standard input of all parts."""
        return not select.select([0], [], [], 0)[0]

    def timed(self, operation: Callable[[], Any]) -> Any:
        start_s = time.monotonic()
        returned = operation()
        self.stall_s = max(self.stall_s, time.monotonic() - start_s)
        self.operations += 1
        return returned


PARTS = {
    "names": names, "log": log, "held": held, "counter": counter, "stream": stream, "attributes": attributes,
    "commands": commands,
}  # fmt: skip


def main() -> None:
    part, folder, seed = sys.argv[1:]
    try:
        os.mkdir(folder)
    except FileExistsError:
        assert part == "counter", errno.EEXIST  # they share one
    print("begins", flush=True)
    clock = Clock()
    facts = PARTS[part](clock, folder, int(seed))
    print(json.dumps({"operations": clock.operations, "stall_s": clock.stall_s, **facts}))


if __name__ == "__main__":
    main()
