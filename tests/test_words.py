"""Words that this code once used and no field knows do not come back: names, comments, docstrings, messages, docs.

A name that a format carries (a JSON key, an SQL table) stays, since old volumes have it: ALLOWED names the file, the
word and why. CHANGELOG.md and docs/internals/formats.md, which list old names, and golden files are not read.
"""

from __future__ import annotations

import re
from collections import defaultdict

from tests.project.project_files import ROOT, project_files

PLACES = [
    "snapfs", "replicator", "tests", "tools", "docs", "monitoring", "systemd", "README.md", "CONTRIBUTING.md",
    "SECURITY.md",
]  # fmt: skip
LEFT_OUT = ["tests/golden/", "docs/internals/formats.md", "tests/test_words.py"]

RETIRED = [
    "burial", "bury", "tether", "recaller", "mender", "mending", "bringing", "warm[ _]?tree", "refit", "arriving",
    r"(?<!\.)tell", "told", "tells", "telling", "whoever", "heirs", "condemned", "steal", "stolen", "theft",
    r"distrust\w*", r"doubt\w*", "undead", "parentage", "richest", "likeness", "surroundings", "newborn", "lick_wounds",
    "luck",
]  # fmt: skip
RETIRED_WORD = re.compile(rf"(?<![a-z])({'|'.join(RETIRED)})(?![a-z])", re.IGNORECASE)
"""A word, also as a part of an identifier: `_` and digits end one. `tell` is a method of Python's files."""

ALLOWED = [
    ("snapfs/daemon/supervision/supervisor_state.py", "undead", "a key of the supervisor's memory"),
    ("snapfs/daemon/supervision/supervisor_upgrade.py", "undead", "the same key, as an older supervisor wrote it"),
    ("snapfs/live/database/schema.py", "refit", "an SQL table"),
    ("snapfs/live/namespace/absent_rows.py", "refit", "the same table"),
    ("snapfs/live/namespace/bulk_changes.py", "refit", "the same table"),
    ("snapfs/transfer/failover/fence_file.py", "told", "a key of fenced.json"),
]


def searched_files() -> list[str]:
    places = tuple(f"{place}/" for place in PLACES)
    found = (name for name in project_files() if name in PLACES or name.startswith(places))
    return [name for name in found if not name.startswith(tuple(LEFT_OUT))]


def retired_words() -> dict[tuple[str, str], list[int]]:
    """(file, word) to the lines where it stands."""
    found = defaultdict(list)
    for name in searched_files():
        path = ROOT / name
        if path.is_symlink() or not path.is_file():
            continue
        for at, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            for match in RETIRED_WORD.finditer(line):
                found[name, match[0].lower()].append(at)
    return found


def test_no_retired_word_is_used() -> None:
    found, allowed = retired_words(), {(name, word) for name, word, _ in ALLOWED}
    used = [
        f"{name}:{at}: {word}" for (name, word), lines in found.items() if (name, word) not in allowed for at in lines
    ]
    assert not used, "\n".join(used)
    assert allowed <= set(found), f"remove from ALLOWED what is not used any more: {allowed - set(found)}"


def test_words_are_found_as_parts_of_identifiers_and_not_of_other_words() -> None:
    text = "who_told, Told; file.tell toldest WarmTree _doubtful unlucky"
    assert [match[0] for match in RETIRED_WORD.finditer(text)] == ["told", "Told", "WarmTree", "doubtful"]
