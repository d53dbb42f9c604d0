"""Makes pages-v1.txt: every page of two snapshots, as layout version 1 writes it.

    python -m tests.golden.make_pages_v1

A line is an object: number, Kind, base (0: none), and the plain content in hex; the last line has the roots. Later
versions of snapfs must read it for ever, so it is never made anew; a new layout gets a new file beside it.
"""

from __future__ import annotations

from pathlib import Path

from snapfs.store.tables.snapshot import SnapshotTree
from tests.fakes.histories.objects import MemoryObjects
from tests.fakes.histories.state_model import DIRECTORY, FIFO, REGULAR, SYMLINK, Node, State

PATH = Path(__file__).parent / "pages-v1.txt"


def states() -> list[State]:
    """The states that the two snapshots are of."""
    first = State()
    first.nodes |= {
        2: Node(DIRECTORY | 0o700, nlink=2, mtime=-1),
        3: Node(REGULAR | 0o4755, size=5, chunks={0: b"alone"}, nlink=2),
        4: Node(REGULAR | 0o600, size=1 << 33, chunks={0: b"first", 1: b"second", 70_000: b"beyond two levels"}),
        5: Node(SYMLINK | 0o777, target=b"../to/somewhere"),
        6: Node(SYMLINK | 0o777, target=b"t" * 1000),
        40: Node(FIFO | 0o644, xattrs={b"user.short": b"value", b"user.empty": b""}),
        41: Node(REGULAR | 0o644, xattrs={b"user.long": bytes(range(256)) * 2}),
        5000: Node(REGULAR | 0o644, mtime=1 << 60),
    }
    names = {b"d": 2, b"suid": 3, b"sparse": 4, b"link": 5, b"longer link": 6, b"fifo": 40, b"attributes": 41}
    first.nodes[1].names = {**names, b"n" * 255: 5000, b"\xff\x01": 3}
    for ino in range(100, 300):
        first.nodes[ino] = Node(REGULAR | 0o644)
        first.nodes[2].names[b"%x" % (ino * ino)] = ino
    first.next_ino = 5001
    second = first.copy()
    second.clock += 10**9
    second.nodes[4].chunks |= {1: b"changed", 64: b"added"}
    second.nodes[3].mode = REGULAR | 0o755
    second.drop(2, b"%x" % (250 * 250))
    second.nodes[2].names[b"moved"] = second.nodes[2].names.pop(b"%x" % (101 * 101))
    second.drop(1, b"fifo")
    return [first, second]


def make() -> list[str]:
    objects, tree, before, roots = MemoryObjects(), None, None, []
    for state in states():
        tree = SnapshotTree(objects, state.seal(objects, tree, before))
        roots.append(tree.pointer.number)
        before = state
    lines = []
    for number, plain in objects.plain.items():
        base = objects.bases[number]
        lines.append(f"{number} {objects.kinds[number].name} {base.number if base else 0} {plain.hex()}")
    return [*lines, "roots " + " ".join(map(str, roots))]


if __name__ == "__main__":
    PATH.write_text("".join(f"{line}\n" for line in make()))
