"""Tokens: what they grant, how they end, what the file gives away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replicator.mirror.tokens import Tokens, require, server_tls
from snapfs.base.blocks import Disk
from snapfs.base.errors import CorruptionError, UserError, VersionError
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.protocol.wire import Right


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(str(tmp_path / "tokens.json"), Disk(), clock=lambda: 1000.0)


@pytest.mark.parametrize(
    ("rights", "volume", "granted"),
    [
        ({"pg": "read"}, "pg", {Right.READ}),
        ({"pg": "push"}, "pg", {Right.READ, Right.PUSH}),
        ({"pg": "prune"}, "pg", {Right.READ, Right.PRUNE}),
        ({"pg": "push+prune"}, "pg", {Right.READ, Right.PUSH, Right.PRUNE}),
        ({"pg": "admin"}, "pg", {Right.READ, Right.PUSH, Right.PRUNE, Right.ADMIN}),
        ({"*": "read", "pg": "push"}, "pg", {Right.READ, Right.PUSH}),
        ({"*": "read", "pg": "push"}, "redis", {Right.READ}),
        ({"pg": "admin"}, "pg2", set()),
    ],
)
def test_rights(tokens: Tokens, rights: dict[str, str], volume: str, granted: set[Right]) -> None:
    token, _ = tokens.create(rights)
    for right in Right:
        if right in granted:
            require(token, volume, right)
            continue
        with pytest.raises(RefusedError) as caught:
            require(token, volume, right)
        assert caught.value.refusal is (Refusal.FORBIDDEN if granted else Refusal.NOT_FOUND)


def test_a_token_lets_in_until_it_ends_or_is_revoked(tokens: Tokens) -> None:
    now = [1000.0]
    tokens.clock = lambda: now[0]
    made, text = tokens.create({"pg": "read"}, seconds=60)
    other, other_text = tokens.create({"*": "admin"}, "for ever")
    elsewhere = Tokens(tokens.path, clock=lambda: now[0])
    assert elsewhere.check(f"Bearer {text}").id == made.id
    now[0] = 1060.0
    for header in (f"Bearer {text}", text, f"Basic {text}", "Bearer", "", None, f"Bearer {text}x", "Bearer \udcff\n"):
        with pytest.raises(RefusedError) as caught:
            elsewhere.check(header)
        assert caught.value.refusal is Refusal.UNAUTHORIZED
        assert text not in str(caught.value)
    assert elsewhere.check(f"bearer {other_text}").note == "for ever"
    tokens.revoke(other.id)
    with pytest.raises(RefusedError):
        elsewhere.check(f"Bearer {other_text}")
    with pytest.raises(UserError, match="there is no token"):
        tokens.revoke(other.id)


def test_who_changes_the_file_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "tokens.json")
    gone = Tokens(path).create({"*": "read"})[0].id

    def change(number: int) -> str:
        if number == 3:
            return Tokens(path).revoke(gone).id
        return Tokens(path).create({"*": "read"})[0].id

    with ThreadPoolExecutor(12) as pool:
        made = {each for each in pool.map(change, range(24)) if each != gone}
    assert len(made) == 23
    assert set(Tokens(path).all()) == made


def test_the_file_holds_no_secret_and_only_its_owner_reads_it(tokens: Tokens) -> None:
    made = [tokens.create({"*": "read"})[1] for _ in range(3)]
    path = Path(tokens.path)
    text = path.read_text()
    assert all(token not in text and token.split("_", 2)[2] not in text for token in made)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [path] == list(path.parent.iterdir()), "nothing is left beside it"


@pytest.mark.parametrize("content", ["", "{", '{"format": 2, "tokens": []}', '{"format": 1, "tokens": [{"id": "x"}]}'])
def test_a_file_that_cannot_be_understood_lets_no_client_in(tokens: Tokens, content: str) -> None:
    _, text = tokens.create({"*": "admin"})
    Path(tokens.path).write_text(content)
    with pytest.raises((CorruptionError, VersionError), match=r"tokens\.json"):
        tokens.check(f"Bearer {text}")


@pytest.mark.parametrize("rights", [{}, {"pg": "write"}, {"../x": "read"}, {"": "read"}])
def test_grants_that_are_none(tokens: Tokens, rights: dict[str, str]) -> None:
    with pytest.raises(UserError):
        tokens.create(rights)


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "pem").write_text("nonsense")
    for path in (tmp_path / "pem", tmp_path / "missing"):
        with pytest.raises(UserError, match="TLS: "):
            server_tls(str(path), str(path), None)
