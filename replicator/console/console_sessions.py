"""Sessions of people who logged in: kept here alone, known to the browser by a random id in a cookie. Pure but for
random numbers.

Invariants:
1. At most MOST sessions, PER_TOKEN of one token; one more ends the one that was idle for longest.
2. A session ends LIFE_S after its login, and IDLE_S after it was used last; a page that is open and live uses it.
3. What is kept is the hash of the id: memory that leaks gives nobody a session.
4. A session has the token as it was at the login: whether it still counts is asked at each use.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from replicator.mirror.tokens import Token

MOST: Final = 256
PER_TOKEN: Final = 16
LIFE_S: Final = 8 * 3600.0
IDLE_S: Final = 3600.0


@dataclass(slots=True)
class ConsoleSession:
    """`csrf`: what each form of it carries. `notice`: a line for the next page. `streams`: live pages open now."""

    token: Token
    began_s: float
    used_s: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    notice: str = ""
    streams: int = 0

    def accepts(self, csrf: object) -> bool:
        """Whether a form was made for this session."""
        return isinstance(csrf, str) and hmac.compare_digest(csrf.encode("utf-8", "replace"), self.csrf.encode())


class Sessions:
    """`clock`: seconds of any beginning, which only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, ConsoleSession] = {}

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, token: Token) -> tuple[str, ConsoleSession]:
        """A new session, and its id, which is nowhere else."""
        self._forget_ended()
        own = [key for key, session in self._known.items() if session.token.id == token.id]
        if len(own) >= PER_TOKEN:
            self._forget_idlest(own)
        elif len(self._known) >= MOST:
            self._forget_idlest(list(self._known))
        name, now_s = secrets.token_urlsafe(32), self._clock()
        session = self._known[_key(name)] = ConsoleSession(token, now_s, now_s)
        return name, session

    def get(self, name: str) -> ConsoleSession | None:
        """The session with this id, used now; None if there is none."""
        session = self._known.get(_key(name))
        if session is None or self._is_over(session):
            self._known.pop(_key(name), None)
            return None
        session.used_s = self._clock()
        return session

    def end(self, name: str) -> None:
        self._known.pop(_key(name), None)

    def _is_over(self, session: ConsoleSession) -> bool:
        now_s = self._clock()
        return now_s - session.began_s > LIFE_S or now_s - session.used_s > IDLE_S

    def _forget_ended(self) -> None:
        for key in [key for key, session in self._known.items() if self._is_over(session)]:
            del self._known[key]

    def _forget_idlest(self, keys: list[str]) -> None:
        del self._known[min(keys, key=lambda key: self._known[key].used_s)]


def _key(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
