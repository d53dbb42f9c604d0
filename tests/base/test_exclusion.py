"""Patterns of what is in no snapshot: a table, and git's own answers."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from snapfs.base.errors import UserError
from snapfs.base.settings import config
from snapfs.base.settings.exclusion import MOST_PATTERNS, Exclusion

NAMES = ["a", "b", "ab", "a.tmp", "b.tmp", "cache", "x y", "#h", "!n", "a.b", "li\nne"]
PARTS = [
    *NAMES[:-1],
    "*",
    "**",
    "*.tmp",
    "a*",
    "?",
    "[ab]",
    "[!a]",
    "*b",
    "\\#h",
    "\\!n",
    "[a-b]*",
    "[[:alpha:]]",
    "**b",
]


@pytest.mark.parametrize(
    ("pattern", "path", "is_directory", "expected"),
    [
        ("cache/", b"cache", True, True),
        ("cache/", b"cache", False, False),
        ("cache/", b"deep/down/cache", True, True),
        ("/cache", b"deep/cache", False, False),
        ("*.tmp", b"deep/a.tmp", False, True),
        ("*.tmp", b"a.tmp\n", False, False),
        ("*.tmp", b"a\nb.tmp", False, True),
        ("*.tmp", b"\xff.tmp", False, True),
        ("a/*", b"a/b", False, True),
        ("a/*", b"a/b/c", False, False),
        ("a/**", b"a", True, False),
        ("**/b", b"b", False, True),
        ("?.txt", "é.txt".encode(), False, True),
    ],
)
def test_what_is_left_out(pattern: str, path: bytes, is_directory: bool, expected: bool) -> None:
    assert Exclusion([pattern]).leaves_out(path, is_directory=is_directory) is expected


@pytest.mark.parametrize("pattern", ["", "/", "!", "# a comment", "a\nb", "x" * 300, "[ab", "[b-a]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UserError, match=r"at snapshots\.exclude"):
        config.decode({"snapshots": {"exclude": [pattern]}}, "volume.toml")


def test_so_many_patterns_and_no_more() -> None:
    with pytest.raises(UserError, match=r"at most 100 patterns, at snapshots\.exclude"):
        config.decode({"snapshots": {"exclude": ["a"] * (MOST_PATTERNS + 1)}}, "volume.toml")


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git to compare with")
def test_git_answers_the_same(tmp_path: Path) -> None:
    for seed in range(8):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        subprocess.run(["git", "init", "-q", folder], check=True)
        paths = dict[str, bool]()
        _fill(chance, folder, "", paths, 0)
        for _ in range(4):
            patterns = [_pattern(chance) for _ in range(chance.randint(1, 4))]
            assert _ours(patterns, paths) == _gits(folder, patterns, paths), (seed, patterns)


def _fill(chance: random.Random, folder: Path, above: str, paths: dict[str, bool], depth: int) -> None:
    for name in chance.sample(NAMES, chance.randint(1, 5)):
        path = above + name
        paths[path] = depth < 3 and chance.random() < 0.6
        if paths[path]:
            (folder / path).mkdir()
            _fill(chance, folder, f"{path}/", paths, depth + 1)
        else:
            (folder / path).touch()


def _pattern(chance: random.Random) -> str:
    body = "/".join(chance.choice(PARTS) for _ in range(chance.choice([1, 1, 1, 2, 2, 3])))
    first = "/" if chance.random() < 0.2 else ""
    last = "/" if chance.random() < 0.3 else ""
    pattern = f"{'!' if chance.random() < 0.25 else ''}{first}{body}{last}"
    return "a" if pattern.startswith("#") else pattern


def _ours(patterns: list[str], paths: dict[str, bool]) -> set[str]:
    exclusion, out = Exclusion(patterns), set[str]()
    for path in sorted(paths):
        inside = path.rpartition("/")[0] in out
        if inside or exclusion.leaves_out(path.encode(), is_directory=paths[path]):
            out.add(path)
    return out


def _gits(folder: Path, patterns: list[str], paths: dict[str, bool]) -> set[str]:
    (folder / ".git" / "info" / "exclude").write_text("".join(f"{pattern}\n" for pattern in patterns))
    asked = ["git", "-C", str(folder), "check-ignore", "-z", "--stdin", "--no-index"]
    found = subprocess.run(asked, input="\0".join(paths).encode() + b"\0", capture_output=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    return {path.decode() for path in found.stdout.split(b"\0") if path}
