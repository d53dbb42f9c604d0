"""Checks of a mirror as a target: the way there, TLS, the clock, what the token may do, the volume, room.

Invariant: nothing is changed there. Each finding that is not well ends with what to do.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from snapfs.base.errors import SnapfsError, VersionError, reason
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.support import output
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.protocol.target_url import mirror_of
from snapfs.store.protocol.wire import PROTOCOL_VERSION

if TYPE_CHECKING:
    from snapfs.store.protocol.messages import TokenState
    from snapfs.transfer.sources.mirror_source import MirrorSource
    from snapfs.transfer.sources.source_access import Access

CLOCK_S: Final = 5.0
"""Clocks may differ by so much: locks, holds and lags are measured by both."""
SOON_S: Final = 14 * 86400.0
ROOM_BYTES: Final = 1 << 30
_ANSWER_S: Final = 5.0


def mirror(url: str, access: Access) -> Iterator[Finding]:
    """All about the mirror at `url`. Raises UserError for a URL or files that cannot be."""
    from snapfs.transfer.sources.mirror_source import MirrorSource

    source = MirrorSource(url, access)
    try:
        before_s = time.time()
        try:
            health, there_s = source.health()
        except OSError as error:
            yield _unreachable(url, str(error).removeprefix(f"{url}: "))
            return
        yield Finding("target", Level.OK, f"{url} answers, snapfs {health.version}")
        yield from _way(url, access)
        yield clock(before_s, time.time(), there_s, 1.0)
        if health.protocol > PROTOCOL_VERSION:
            words = f"the mirror speaks protocol {health.protocol}, and this snapfs {PROTOCOL_VERSION}"
            yield Finding("protocol", Level.NOTE, f"{words}: it serves both")
        if health.status not in ("ok", "ready"):
            yield Finding("target", Level.WARN, f"{url} is not ready: {health.reason}; see the log of the mirror")
        yield from _token_and_volume(mirror_of(url)[1], source)
    finally:
        source.close()


def _unreachable(url: str, why: str) -> Finding:
    hint = "is the mirror running, and are address and port right?"
    if "certificate" in why:
        hint = "name the authority that signed it with --ca (`ca` of a target), or give the mirror another certificate"
    elif "TLS" in why:
        hint = "write http:// if it serves without, or give the mirror --tls-cert"
    return Finding("target", Level.BAD, f"{url} cannot be reached ({why}): {hint}")


def _way(url: str, access: Access) -> Iterator[Finding]:
    """Whether what goes there can be read on the way, and for how long the certificate is good."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        if is_near(host):
            yield Finding("tls", Level.OK, "none, and the mirror is on this host")
        else:
            words = "none: the token and all contents can be read on the way; use https:// (`serve --tls-cert`)"
            yield Finding("tls", Level.WARN, words)
        return
    try:
        with (
            socket.create_connection((host, parts.port or 443), _ANSWER_S) as plain,
            access.tls().wrap_socket(plain, server_hostname=host) as secure,
        ):
            version, shown = secure.version(), secure.getpeercert() or {}
    except OSError as error:
        yield Finding("tls", Level.BAD, f"{reason(error)}: see the log of the mirror")
        return
    left_s = ssl.cert_time_to_seconds(str(shown["notAfter"])) - time.time()
    words = f"{version}; its certificate is good for {output.seconds(left_s)} more"
    if left_s < SOON_S:
        yield Finding("tls", Level.WARN, f"{words}: renew it, and send the mirror SIGHUP")
    else:
        yield Finding("tls", Level.OK, words)


def is_near(host: str) -> bool:
    """Whether an address is of this host itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def clock(before_s: float, after_s: float, there_s: float | None, grain_s: float) -> Finding:
    """How far the target's clock is from ours: it gave `there_s`, cut to `grain_s`, between the two of ours."""
    if there_s is None:
        return Finding("clock", Level.NOTE, "the target does not send its time")
    late_s = max(before_s - (there_s + grain_s), 0.0) - max(there_s - after_s, 0.0)
    if abs(late_s) <= CLOCK_S:
        return Finding("clock", Level.OK, f"as here, within {CLOCK_S:.0f} s")
    words = f"the target's is {output.seconds(abs(late_s))} {'behind' if late_s > 0 else 'ahead of'} this host's"
    return Finding("clock", Level.WARN, f"{words}: let both be set by NTP; locks and ages go by the target's")


def _token_and_volume(volume: str, source: MirrorSource) -> Iterator[Finding]:
    try:
        yield from token(volume, source.token_state())
    except RefusedError as error:
        if error.refusal is Refusal.NOT_FOUND:
            yield Finding("token", Level.NOTE, "what it may do is not known: the mirror is of an earlier version")
        elif error.refusal is Refusal.UNAUTHORIZED:
            words = "the mirror does not know the token: `snapfs-replicator token create` on its host makes one"
            yield Finding("token", Level.BAD, f"{words}; name its file with --token-file (`token_file` of a target)")
            return
        else:
            yield Finding("token", Level.BAD, f"{error}: see the log of the mirror")
            return
    try:
        state = source.state()
    except RefusedError as error:
        if error.refusal is Refusal.NOT_FOUND:
            words = f"{volume} is not there, or not for this token: the first push makes it"
            yield Finding("volume", Level.NOTE, words)
        else:
            yield Finding("volume", Level.BAD, f"{error}: see the log of the mirror")
        return
    except VersionError as error:
        yield Finding("format", Level.BAD, f"{error}: use a newer snapfs", newer=True)
        return
    except (OSError, SnapfsError) as error:
        yield Finding("volume", Level.BAD, f"{error}: see the log of the mirror")
        return
    writer = f"generation {state.generation}, writer {state.writer_id or 'none'}"
    yield Finding("volume", Level.OK, f"{volume}: {state.snapshots} snapshots, {writer}")
    free = f"{output.size(state.free_bytes)} free"
    if state.free_bytes < ROOM_BYTES:
        yield Finding(
            "space", Level.WARN, f"{free} there: make room on the disk of the mirror, or keep fewer snapshots"
        )
    else:
        yield Finding("space", Level.OK, f"{free} there")


def token(volume: str, state: TokenState) -> Iterator[Finding]:
    """What the token may do on the volume, and until when."""
    rights = sorted({right for name in (volume, "*") for right in state.rights.get(name, "").split("+") if right})
    if not rights:
        words = f"token {state.id} has no right on {volume}: `snapfs-replicator token create --grant {volume}:push`"
        yield Finding("token", Level.BAD, f"{words} on the mirror's host makes one that has")
        return
    may = {"read": "read", "push": "read and push", "prune": "read and drop", "admin": "do everything with"}
    words = f"token {state.id} may {' and '.join(may.get(right, right) for right in rights)} {volume}"
    left_s = state.expires - time.time()
    if state.expires and left_s < SOON_S:
        hint = "make another in time with `snapfs-replicator token create`"
        yield Finding("token", Level.WARN, f"{words}, for {output.seconds(max(left_s, 0.0))} more: {hint}")
    else:
        yield Finding("token", Level.OK, words)
    if "push" in rights and not {"prune", "admin"} & set(rights):
        yield Finding("token", Level.NOTE, "what is dropped here stays there: to follow drops takes push+prune")
