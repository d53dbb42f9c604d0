"""The command line of a mount in the background, which `mount` writes and its daemon's process reads, and no other.

It is taken apart without what command lines need otherwise: click and what comes with it takes 3 MiB in each daemon,
and a tenth of the time to start it. What is not exactly of this form goes to the command `mount`, which reads this form
too: that of an earlier version does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SEPARATOR = "--"
_FIXED = ["mount", "--foreground"]
_FIRST_AT = "--first-at="


@dataclass(frozen=True, slots=True)
class DaemonArguments:
    """What DaemonStart says: where to report, what releases the daemon, `-o` as it was given, and what to mount.

    `first_at`: where the mount is made, if it is to become that of `mountpoint` later (adoption.py).
    """

    ready_fd: int
    go_fd: int
    options: tuple[str, ...]
    refuse_changes: bool
    volume: str
    mountpoint: str
    first_at: str = ""

    def words(self) -> list[str]:
        """The command line, of which `parse` makes the same."""
        more = ["--refuse-changes"] if self.refuse_changes else []
        more += [f"{_FIRST_AT}{self.first_at}"] if self.first_at else []
        fds = [f"--ready-fd={self.ready_fd}", f"--go-fd={self.go_fd}"]
        return [*_FIXED, *fds, *(f"-o{text}" for text in self.options), *more, _SEPARATOR, self.volume, self.mountpoint]

    @staticmethod
    def parse(words: Sequence[str]) -> DaemonArguments | None:
        """None for what is not of this form."""
        if list(words[:2]) != _FIXED or len(words) < 7 or words[-3] != _SEPARATOR or _SEPARATOR in words[:-3]:
            return None
        ready, go = (words[n].partition("=")[2] for n in (2, 3))
        rest = words[4:-3]
        more = [word for word in rest if not word.startswith("-o")]
        options = tuple(word[2:] for word in rest if word.startswith("-o"))
        first_at = next((word.removeprefix(_FIRST_AT) for word in more if word.startswith(_FIRST_AT)), "")
        more = [word for word in more if not word.startswith(_FIRST_AT)]
        if not (ready.isdecimal() and go.isdecimal()) or more not in ([], ["--refuse-changes"]):
            return None
        made = DaemonArguments(int(ready), int(go), options, bool(more), words[-2], words[-1], first_at)
        return made if made.words() == list(words) else None
