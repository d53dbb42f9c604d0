"""Who may do what on a mirror: tokens, kept hashed; and the TLS a mirror listens with.

A token is `snapfs_<id>_<secret>`: 8 hex digits that name its line in the file, and 32 random bytes, base64url. The file
(a JsonFile) holds the SHA-256 of the whole token: of 256 random bits a slow hash would protect nothing
more, and cost each request.

Invariants:
1. The file has mode 0600, is replaced in one step, by one process at a time, and never holds a token, only hashes.
2. A check takes the same time whether the id is known or not, and compares in constant time.
3. What `token revoke` did counts from the next request on: the file is looked at (stat) for each check.
4. A token grants rights per volume, "*" for all: one of RIGHTS, or several joined by "+". A token that may not
   even read a volume does not learn that it exists.
5. To drop takes PRUNE, which PUSH does not include: who takes over the host that pushes cannot erase what is here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from snapfs.base.blocks import Disk
from snapfs.base.errors import UserError
from snapfs.base.file_lock import locked_folder
from snapfs.base.json_file import JsonFile
from snapfs.store.protocol.refusals import Refusal, refuse
from snapfs.store.protocol.wire import VOLUME_NAME, Right

ALL: Final = "*"
RIGHTS: Final = {
    "read": Right.READ,
    "push": Right.READ | Right.PUSH,
    "prune": Right.READ | Right.PRUNE,
    "admin": Right.READ | Right.PUSH | Right.PRUNE | Right.ADMIN,
}
_TOKEN: Final = re.compile(r"snapfs_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NO_TOKEN: Final = hashlib.sha256(b"nobody").hexdigest()


class Token(msgspec.Struct, frozen=True):
    """A line of the file. `rights`: volume (or "*") to names of RIGHTS, joined by "+". `expires`: UTC s, 0: never."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    rights: dict[str, str]
    note: str = ""
    created: int = 0
    expires: int = 0

    def right_on(self, volume: str) -> Right:
        """What the token allows on a volume."""
        found = Right(0)
        for name in (volume, ALL):
            for right in self.rights.get(name, "").split("+"):
                found |= RIGHTS.get(right, Right(0))
        return found


class _File(msgspec.Struct, frozen=True):
    tokens: list[Token]
    format: int = 1


TOKENS: Final = JsonFile("tokens of a mirror", _File, advice="it lets no client in until it is restored, or made again")


@dataclass(slots=True)
class Tokens:
    """The tokens in a file, which may be changed by another process at any time."""

    path: str
    disk: Disk = field(default_factory=Disk)
    clock: Callable[[], float] = time.time
    _stamp: tuple[int, int, int] = (0, 0, -1)
    _known: dict[str, Token] = field(default_factory=dict)

    def check(self, header: str | None) -> Token:
        """The token of an Authorization header. Raises RefusedError ("unauthorized")."""
        scheme, _, text = (header or "").partition(" ")
        match = _TOKEN.fullmatch(text.strip()) if scheme.lower() == "bearer" else None
        known = self.all()
        found = known.get(match[1]) if match else None
        digest = hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).hexdigest()
        good = hmac.compare_digest(digest, found.sha256 if found is not None else _NO_TOKEN)
        if found is None or not good or (found.expires and found.expires <= self.clock()):
            why = "a token is needed that this mirror knows: `snapfs-replicator token create` makes one"
            raise refuse(Refusal.UNAUTHORIZED, why)
        return found

    def is_good(self, token: Token) -> bool:
        """Whether a token that was checked before would be accepted now, with the same rights."""
        found = self.all().get(token.id)
        return found == token and not (token.expires and token.expires <= self.clock())

    def all(self) -> dict[str, Token]:
        """By id. A file that is missing holds none. Raises CorruptionError, VersionError if it cannot be understood."""
        try:
            stat = os.stat(self.path)
        except FileNotFoundError:
            self._stamp, self._known = (0, 0, -1), {}
            return self._known
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._known, self._stamp = self._read(), stamp
        return self._known

    def create(self, rights: dict[str, str], note: str = "", seconds: float = 0.0) -> tuple[Token, str]:
        """Add a token; returns its line and the token itself, which is nowhere else. Raises UserError, OSError."""
        for volume, right in rights.items():
            is_known = all(each in RIGHTS for each in right.split("+"))
            if not is_known or not (volume == ALL or VOLUME_NAME.fullmatch(volume)):
                words = ", ".join(RIGHTS)
                raise UserError(f"{volume}:{right} grants nothing: VOLUME:RIGHT ({words}, joined by +), * for all")
        if not rights:
            raise UserError("a token without rights is of no use: --grant VOLUME:RIGHT")
        now = self.clock()
        expires = int(now + seconds) if seconds else 0
        with locked_folder(os.path.dirname(self.path) or "."):  # else a revoked token could come back
            known = self.all()
            name = next(name for name in iter(lambda: secrets.token_hex(4), "") if name not in known)
            text = f"snapfs_{name}_{secrets.token_urlsafe(32)}"
            made = Token(name, hashlib.sha256(text.encode()).hexdigest(), dict(rights), note, int(now), expires)
            self._write([*known.values(), made])
        return made, text

    def revoke(self, name: str) -> Token:
        """Take a token out, by its id. Raises UserError if there is none, OSError."""
        with locked_folder(os.path.dirname(self.path) or "."):  # else a revoked token could come back
            known = dict(self.all())
            gone = known.pop(name, None)
            if gone is None:
                raise UserError(f"there is no token {name}: `snapfs-replicator token list` shows them")
            self._write(list(known.values()))
        return gone

    def _read(self) -> dict[str, Token]:
        found = TOKENS.read(self.path)
        return {token.id: token for token in found.tokens} if found is not None else {}

    def _write(self, tokens: list[Token]) -> None:
        TOKENS.write("tokens:write", self.path, _File(tokens), self.disk)
        self._stamp = (0, 0, -1)


def require(token: Token, volume: str, right: Right) -> None:
    """Raises RefusedError if the token does not grant the right on the volume."""
    granted = token.right_on(volume)
    if right in granted:
        return
    if Right.READ not in granted:
        raise refuse(Refusal.NOT_FOUND, f"there is no volume {volume} here, or none for this token")
    word = next(name for name, rights in RIGHTS.items() if right in rights)
    raise refuse(Refusal.FORBIDDEN, f"the token may not do this on {volume}: it takes the right to {word}")


def server_tls(certificate: str, key: str, client_ca: str | None) -> ssl.SSLContext:
    """The context to listen with; with `client_ca` every client shows a certificate of it. Raises UserError."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:
        raise UserError(f"TLS: {certificate}, {key}{f', {client_ca}' if client_ca else ''}: {error}") from None
    return context
