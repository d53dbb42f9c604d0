"""What targets learn of each other, and which of them a takeover did not query: tables."""

from __future__ import annotations

import msgspec
import pytest

from snapfs.store.bucket.head_object import Head, decode_head, encode_head
from snapfs.store.log.peers import (
    MAX_PEERS,
    MAX_URL_CHARACTERS,
    AskedTarget,
    NotAsked,
    Peer,
    Peers,
    decoded,
    lines,
    masked,
    not_asked,
    peers_of,
    shared_url,
    with_peers,
)
from snapfs.store.protocol import message_codec, messages, refusals

A, B = "a" * 32, "b" * 32
SECOND = Peer("https://second:8700/pg", "second", B)


@pytest.mark.parametrize(
    ("place", "shared"),
    [
        ("https://mirror:8700/pg", "https://mirror:8700/pg"),
        ("https://mirror:8700/pg/", "https://mirror:8700/pg"),
        ("https://user:secret@mirror/pg?token=secret#secret", "https://mirror/pg"),
        ("https://user:sec@ret/secret@mirror/pg", "https://mirror/pg"),
        ("https://user:?secret@mirror/pg", "https://mirror/pg"),
        ("s3://key:secret@bucket/prefix?token=secret", "s3://bucket/prefix"),
        ("/srv/backup", "file:///srv/backup"),
        ("file:///srv/a@b", "file:///srv/a@b"),
        ("file:///srv/\x1b[31m ä", "file:///srv/%1B[31m%20%C3%A4"),
        ("https://${HOST}/pg", "https://${HOST}/pg"),
    ],
)
def test_no_secret_is_shared_and_nothing_that_is_no_plain_text(place: str, shared: str) -> None:
    assert shared_url(place) == shared
    msgspec.convert({"url": shared_url(place)}, Peer)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://second:8700/payroll", "https://second:8700"),
        ("s3://bucket/payroll", "s3://bucket"),
        ("file:///srv/payroll", "file://"),
    ],
)
def test_a_target_of_an_encrypted_volume_learns_host_and_id_only(url: str, shown: str) -> None:
    assert masked(Peer(url, "payroll", A)) == Peer(shown, id=A)
    targets = [("payroll", url), ("other", "https://third/x")]
    found = peers_of(targets, {("payroll", url): A}, targets[1], 2, encrypted=True)
    assert found == Peers([Peer(shown, id=A)], 2)
    assert b"payroll" not in msgspec.json.encode(found)


def test_each_target_is_sent_all_others() -> None:
    targets = [("first", "https://first/pg"), ("second", "https://u:secret@second:8700/pg?x")]
    ids = {targets[1]: B}
    assert peers_of(targets, ids, targets[0], 1, encrypted=False) == Peers([SECOND], 1)
    assert peers_of(targets, ids, targets[1], 1, encrypted=False) == Peers([Peer("https://first/pg", "first")], 1)
    assert peers_of(targets[:1], ids, targets[0], 1, encrypted=False) == Peers([], 1)


def test_what_is_sent_always_fits_into_a_claim() -> None:
    """A claim that was refused would end the replication."""
    targets = [(f"t{at}", "https://h/" + "ä" * MAX_URL_CHARACTERS) for at in range(MAX_PEERS + 9)]
    claim = messages.Claim(1, "host-a", peers=peers_of(targets, {}, ("own", ""), 10**4, encrypted=False))
    assert message_codec.decode(message_codec.encode(claim), messages.Claim) == claim


def test_who_names_nothing_changes_nothing() -> None:
    known = Peers([SECOND], 1, "host-a")
    assert with_peers(known, None, "host-b") == known
    assert with_peers(None, Peers(), "host-a") is None
    assert with_peers(known, Peers(), "host-b") == Peers(writer_id="host-b")
    assert with_peers(None, Peers([SECOND], 1), "host-a") == known


NEITHER = Peers([SECOND], 1, "host-a")


@pytest.mark.parametrize(
    ("answered", "failed", "found"),
    [
        ({"https://first/pg": AskedTarget(A)}, {}, []),
        ({"https://first/pg": AskedTarget(A, NEITHER)}, {}, [NotAsked(SECOND.url, "second", B, "host-a", 1)]),
        ({"https://first/pg": AskedTarget(A, NEITHER), "https://alias/pg": AskedTarget(B)}, {}, []),  # by its id
        (  # the URL is the same, and what is there is another target: it was replaced
            {"https://first/pg": AskedTarget(A, NEITHER), SECOND.url: AskedTarget("c" * 32)}, {},
            [NotAsked(SECOND.url, "second", B, "host-a", 1)],
        ),
        ({"https://first/pg": AskedTarget(A, NEITHER), SECOND.url: AskedTarget()}, {}, []),
        (  # named, and silent: reported once, with why
            {"https://first/pg": AskedTarget(A, NEITHER)}, {"https://u:secret@second:8700/pg": "no answer"},
            [NotAsked(SECOND.url, why="no answer")],
        ),
        (  # two that were queried name the same one
            {"https://first/pg": AskedTarget(A, NEITHER), "https://third/pg": AskedTarget("c" * 32, NEITHER)}, {},
            [NotAsked(SECOND.url, "second", B, "host-a", 1)],
        ),
        (  # encrypted: by the host
            {"/srv/t": AskedTarget(A, Peers([masked(Peer(SECOND.url))])), SECOND.url: AskedTarget(B)}, {}, [],
        ),
        (  # encrypted folders look the same without an id: one of them is not the other
            {"/srv/t": AskedTarget(A, Peers([Peer("file://")], 1, "host-a"))}, {},
            [NotAsked("file://", by="host-a", copies=1)],
        ),
    ],
)  # fmt: skip
def test_which_targets_a_takeover_did_not_ask(
    answered: dict[str, AskedTarget], failed: dict[str, str], found: list[NotAsked]
) -> None:
    assert not_asked(answered, failed) == found


def test_what_people_are_shown() -> None:
    silent = NotAsked("https://third/pg", why="no answer")
    assert lines([NotAsked(SECOND.url, "second", B, "host-a", 1), silent], 7, 10**18) == [
        "second (https://second:8700/pg), to which host-a replicated too, was not queried: it may have snapshots after "
        "7 (cut 2001-09-09 01:46:40 UTC). Mount --from it, or name it, to be sure"
    ]
    (nameless,) = lines([NotAsked("https://second", id=B, by="host-a")], 7, 0)
    assert nameless.startswith(f"a target (https://second, id {B}), to which host-a replicated too, was not queried")


def test_earlier_and_later_versions_understand_each_other() -> None:
    """The field is optional: what has none is read, and what an earlier version does not know it passes over."""

    class EarlierClaim(msgspec.Struct):
        generation: int
        holder: str
        note: str = ""
        snapshot: int = 0

    now = message_codec.encode(messages.Claim(2, "host-a", peers=Peers([SECOND], 1)))
    assert msgspec.json.decode(now, type=EarlierClaim).generation == 2
    assert message_codec.decode(b'{"generation":2,"holder":"host-a"}', messages.Claim).peers is None
    head = Head(2, A, "0", generation=2, writer_id="host-a")
    assert b"peers" not in encode_head(head)
    named = msgspec.structs.replace(head, peers=Peers([SECOND], 1, "host-a"))
    assert (decode_head(encode_head(head)), decode_head(encode_head(named))) == (head, named)
    assert decoded({"targets": [{"url": "no plain\ntext"}]}) is None
    assert decoded(None) is None
    assert decoded(msgspec.to_builtins(named.peers)) == named.peers


@pytest.mark.parametrize("url", ["a b", "a\nb", "ä", "x" * (MAX_URL_CHARACTERS + 1), "a\n"])
def test_a_claim_with_what_could_disturb_a_terminal_is_refused(url: str) -> None:
    message = msgspec.json.encode({"generation": 1, "holder": "a", "peers": {"targets": [{"url": url}]}})
    with pytest.raises(refusals.RefusedError):
        message_codec.decode(message, messages.Claim)
