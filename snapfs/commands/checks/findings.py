"""A finding: what one check found, how bad it is, and in words what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Level(Enum):
    OK = "ok"
    NOTE = "note"  # good to know; nothing to do
    WARN = "warn"  # works, less well
    BAD = "bad"  # does not work, or something stored is damaged


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `damage`: stored bytes are not what they must be."""

    what: str
    level: Level
    words: str
    damage: bool = False
    newer: bool = False
    """Something is of a format that only a newer snapfs knows."""

    def facts(self) -> dict[str, Any]:
        facts = {"check": self.what, "level": self.level.value, "finding": self.words}
        return facts | {"damage": self.damage, "newer": self.newer}
