"""The lock order of the data path (snapfs/live/native/lock_order.h) names every mutex that the C code has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "snapfs/live/native/lock_order.h"
STRUCT = re.compile(
    r"^(?:typedef )?struct (?P<tag>\w*) ?\{\n(?P<body>.*?)^\} ?(?P<type>\w*);", re.DOTALL | re.MULTILINE
)
MUTEX = re.compile(r"pthread_(?:mutex|rwlock)_t (\w+);")


def mutexes() -> set[str]:
    found = set()
    for path in (ROOT / "snapfs").glob("*/native/*.[ch]"):
        for struct in STRUCT.finditer(path.read_text()):
            found |= {f"{struct['type'] or struct['tag']}.{name}" for name in MUTEX.findall(struct["body"])}
    return found


def test_the_lock_order_names_every_mutex() -> None:
    text = HEADER.read_text()
    missing = {name for name in mutexes() if not re.search(rf"\b{re.escape(name)}\b", text)}
    assert missing == set()
    assert len(mutexes()) >= 14


def test_every_mutex_is_found() -> None:
    declared = sum(len(MUTEX.findall(path.read_text())) for path in (ROOT / "snapfs").glob("*/native/*.[ch]"))
    assert declared == len(mutexes())


def test_concurrency_points_to_the_header() -> None:
    assert "snapfs/live/native/lock_order.h" in (ROOT / "docs/internals/concurrency.md").read_text()
