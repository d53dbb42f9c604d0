"""The peers of a target: to which other targets a volume is replicated. Pure.

With `copies = 1` of two targets the last writer calls a snapshot safe when either has it. Who takes over by the other
one alone cannot see that snapshot, and would not know that there is a place to look. So the writer's agent sends each
target, with its claim, the list of all the others (`Peers`), and the target remembers what the newest writer sent. A
takeover then names those that it did not query (`not_asked`). It does not go there by itself: that would send its token
to a place that a target named, and no person did.

Invariants:
1. What is sent has no password, token or query in it (`shared_url`); `${NAME}` in a URL is sent as it stands. A target
   of an encrypted volume gets nothing of a peer but its id and the scheme and host of its URL (`masked`).
2. Peers are recognised by their ids; by their URLs only where one side has no id.
3. A claim without peers (a mount, a takeover, an earlier version) changes nothing of what is known.
4. What is sent fits into a message and into a line: at most MAX_PEERS, printable ASCII only.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from msgspec import Meta

MAX_PEERS: Final = 64
MAX_URL_CHARACTERS: Final = 1024
_PRINTABLE: Final = string.punctuation + string.digits + string.ascii_letters
_Text = Annotated[str, Meta(pattern=rf"^[\x21-\x7e]{{0,{MAX_URL_CHARACTERS}}}\Z")]


class Peer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Another target. `id`: "" until the writer has seen it."""

    url: _Text
    name: _Text = ""
    id: Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""


class Peers(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a writer sends to one target: all others, and how many targets it waits for before a snapshot is safe.

    `writer_id` is the sender, filled in by the target from the claim.
    """

    targets: Annotated[list[Peer], Meta(max_length=MAX_PEERS)] = []
    copies: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    writer_id: Annotated[str, Meta(max_length=256)] = msgspec.field(default="", name="holder")


class NotAsked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A target that a takeover did not query. `by`: who replicated to it, `copies`: by that one's settings.

    `why`: it was named, and could not be queried; then `by` is "".
    """

    url: str
    name: str = ""
    id: str = ""
    by: str = ""
    copies: int = 0
    why: str = ""

    def line(self, snapshot: int, cut_time_ns: int) -> str:
        """For people: of the snapshot that was gone on from."""
        cut = datetime.fromtimestamp(cut_time_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        called = f"{self.name or 'a target'} ({self.url}{f', id {self.id}' if self.id and not self.name else ''})"
        return (
            f"{called}, to which {self.by} replicated too, was not queried: it may have snapshots after {snapshot} "
            f"(cut {cut}). Mount --from it, or name it, to be sure"
        )


@dataclass(frozen=True, slots=True)
class AskedTarget:
    """The answer of a place that was queried: its id ("" if it has none), and the peers that it knows."""

    target_id: str = ""
    peers: Peers | None = None


def shared_url(place: str) -> str:
    """A target's URL, or a folder, without anything that could be a secret: printable ASCII, cut where it is too long.

    All up to the last "@" may be a password; then a query may have a token.
    """
    url = place if "://" in place else f"file://{os.path.abspath(place)}"
    scheme, _, rest = url.partition("://")
    if scheme != "file":
        rest = rest.rpartition("@")[2].partition("?")[0].partition("#")[0].rstrip("/")
    return quote(f"{scheme}://{rest}", safe=_PRINTABLE)[:MAX_URL_CHARACTERS]


def masked(peer: Peer) -> Peer:
    """What a target of an encrypted volume gets: neither name nor path."""
    return Peer(_host(peer.url), id=peer.id)


def _host(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def peers_of(
    targets: Sequence[tuple[str, str]], ids: Mapping[tuple[str, str], str], own: tuple[str, str], copies: int,
    *, encrypted: bool,
) -> Peers:  # fmt: skip
    """What to send to the target `own`, of all `targets` (each name and URL, with the `ids` known)."""
    others = [each for each in targets if each != own][:MAX_PEERS]
    sent = [
        Peer(shared_url(url), quote(name, safe=_PRINTABLE)[:MAX_URL_CHARACTERS], ids.get((name, url), ""))
        for name, url in others
    ]
    return Peers([masked(each) for each in sent] if encrypted else sent, max(copies, 0))


def with_peers(known: Peers | None, sent: Peers | None, writer_id: str) -> Peers | None:
    """What a target knows after a claim of `writer_id` with these peers."""
    if sent is None or (known is None and not sent.targets):
        return known
    return msgspec.structs.replace(sent, writer_id=writer_id)


def decoded(fields: Any) -> Peers | None:
    """Of a line of a log; None where a later version wrote something else there."""
    try:
        return msgspec.convert(fields, Peers | None)
    except msgspec.ValidationError:
        return None


def not_asked(answered: Mapping[str, AskedTarget], failed: Mapping[str, str]) -> list[NotAsked]:
    """The targets that a takeover did not query: named ones that failed, with why, and peers that were not named.

    `answered`, `failed`: by place, as it was named.
    """
    found = [NotAsked(shared_url(place), why=why) for place, why in failed.items()]
    peers: dict[tuple[str, str], NotAsked] = {}
    for sent in (each.peers for each in answered.values() if each.peers is not None):
        for peer in sent.targets:
            if not _was_asked(peer, answered) and not any(_is_at(peer, place) for place in failed):
                entry = NotAsked(peer.url, peer.name, peer.id, sent.writer_id, sent.copies)
                peers.setdefault((peer.id, "" if peer.id else peer.url), entry)
    return [*found, *peers.values()]


def _was_asked(peer: Peer, answered: Mapping[str, AskedTarget]) -> bool:
    return any(
        peer.id == standing.target_id if peer.id and standing.target_id else _is_at(peer, place)
        for place, standing in answered.items()
    )


def _is_at(peer: Peer, place: str) -> bool:
    """Whether the URLs are the same, as far as the peer's is known."""
    url = shared_url(place)
    return peer.url == url or (not peer.name and peer.url == _host(url) != "file://")


def lines(places: Iterable[NotAsked], snapshot: int, cut_time_ns: int) -> list[str]:
    """What a takeover reports of the peers that were not named."""
    return [each.line(snapshot, cut_time_ns) for each in places if not each.why]
