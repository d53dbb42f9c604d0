"""`snapfs doctor` of a target: each way in which it can be unfit is a line that says what to do, and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from replicator.mirror.tokens import Tokens
from snapfs.commands.checks.findings import Finding, Level
from snapfs.commands.checks.mirror_checks import clock
from tests.fakes.targets.mirror_process import MirrorProcess
from tests.fakes.targets.ports import free_port
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server
from tests.fakes.targets.unconditional_s3 import DeafServer

Snapfs = Callable[..., Any]


def doctor(snapfs: Snapfs, *words: str | Path, code: int = 0) -> dict[str, tuple[str, str]]:
    """Level and words of each check."""
    done = snapfs("doctor", "--json", *words, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return {each["check"]: (each["level"], each["finding"]) for each in json.loads(done.stdout)}


def token_of(mirror: MirrorProcess, tmp_path: Path, right: str, days: float = 0.0) -> Path:
    made = Tokens(str(mirror.root / "tokens.json")).create({"pg": right}, seconds=days * 86400)[1]
    path = tmp_path / f"token-{right}"
    path.write_text(made)
    return path


def test_a_mirror_that_is_well(snapfs: Snapfs, mirror: MirrorProcess, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{mirror.port}/pg"
    found = doctor(snapfs, url, "--token-file", tmp_path / "token")
    assert found["target"][0] == found["clock"][0] == found["token"][0] == "ok"
    assert found["volume"] == ("note", "pg is not there, or not for this token: the first push makes it")
    mirror.client().create("pg")
    found = doctor(snapfs, url, "--token-file", tmp_path / "token")
    assert found["volume"] == ("ok", "pg: 0 snapshots, generation 0, writer none")
    assert {level for level, _ in found.values()} <= {"ok", "warn"}  # a warning of a full disk, if it is
    assert "space" in found


def test_what_a_token_may_do(snapfs: Snapfs, mirror: MirrorProcess, tmp_path: Path) -> None:
    mirror.client().create("pg")
    url = f"http://127.0.0.1:{mirror.port}/pg"
    done = snapfs("doctor", url, "--token-file", token_of(mirror, tmp_path, "push"), check=False)
    assert "may read and push pg" in done.stdout
    assert "to follow drops takes push+prune" in done.stdout
    found = doctor(snapfs, url, "--token-file", token_of(mirror, tmp_path, "prune", days=3))
    assert found["token"][0] == "warn"
    assert "make another in time" in found["token"][1]
    found = doctor(snapfs, f"http://127.0.0.1:{mirror.port}/other", "--token-file", tmp_path / "token-push", code=3)
    assert found["token"][1].endswith("on the mirror's host makes one that has")
    (tmp_path / "unknown").write_text("snapfs_00000000_" + "x" * 43)
    found = doctor(snapfs, url, "--token-file", tmp_path / "unknown", code=3)
    assert found["token"][1].startswith("the mirror does not know the token: `snapfs-replicator token create`")


def test_a_mirror_that_is_not_there(snapfs: Snapfs) -> None:
    found = doctor(snapfs, f"http://127.0.0.1:{free_port()}/pg", code=3)
    assert found["target"][1].endswith("(Connection refused): is the mirror running, and are address and port right?")
    done = snapfs("doctor", "ftp://host/pg", check=False)
    assert done.returncode == 3


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[MirrorProcess]:
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    process = MirrorProcess(tmp_path / "root", "--tls-cert", str(pem), "--tls-key", str(pem))
    process.start()
    (tmp_path / "token").write_text(process.admin)
    yield process
    process.stop()


def test_tls(snapfs: Snapfs, secure: MirrorProcess, tmp_path: Path) -> None:
    url, given = f"https://127.0.0.1:{secure.port}/pg", ("--token-file", tmp_path / "token")
    found = doctor(snapfs, url, *given, "--ca", tmp_path / "ca.pem")
    assert found["tls"][0] == "ok"
    assert "its certificate is good for" in found["tls"][1]
    found = doctor(snapfs, url, *given, code=3)
    assert "name the authority that signed it with --ca" in found["target"][1]
    found = doctor(snapfs, url.replace("https", "http"), *given, code=3)
    assert found["target"][0] == "bad"


def test_all_targets_of_a_volume_are_checked_though_one_is_gone(
    snapfs: Snapfs, mirror: MirrorProcess, tmp_path: Path, mounted: Any
) -> None:
    (tmp_path / "empty").mkdir()
    with open(mounted.volume / "volume.toml", "a", encoding="utf-8") as settings:
        for name, url in (
            ("gone", f"http://127.0.0.1:{free_port()}/pg"), ("m", f"http://127.0.0.1:{mirror.port}/pg"),
            ("no", f"file://{tmp_path}/no"), ("empty", f"file://{tmp_path}/empty"),
        ):  # fmt: skip
            settings.write(f'\n[[replication.target]]\nname = "{name}"\nurl = "{url}"\n')
            if name == "m":
                settings.write(f'token_file = "{tmp_path}/token"\n')
    found = doctor(snapfs, "--targets", mounted.path, code=3)
    assert [found[f"{name}: target"][0] for name in ("gone", "m", "no", "empty")] == ["bad", "ok", "bad", "note"]
    assert "is its disk mounted?" in found["no: target"][1]
    assert "live tree" in found
    assert not any(name.startswith("gone") for name in doctor(snapfs, mounted.path))


def test_an_object_store(snapfs: Snapfs) -> None:
    def options(endpoint: str) -> list[str]:
        given = {**OPTIONS, "endpoint": endpoint}
        return [word for name, value in given.items() for word in ("--store-option", f"{name}={value}")]

    with s3_server() as endpoint:
        found = doctor(snapfs, f"s3://{BUCKET}/pg", *options(endpoint))
        assert found["target"] == (
            "ok",
            f"s3://{BUCKET}/pg refuses puts whose condition does not hold; the key may write",
        )
        assert (found["clock"][0], found["volume"][0]) == ("ok", "note")
        found = doctor(snapfs, "s3://no-such-bucket/pg", *options(endpoint), code=3)
        assert found["target"][1].endswith("make it, or correct the URL")
        with DeafServer(int(endpoint.rpartition(":")[2]), ("If-Match",)).running() as deaf:
            found = doctor(snapfs, f"s3://{BUCKET}/pg", *options(f"http://127.0.0.1:{deaf.port}"), code=3)
        assert found["target"][1].endswith("Use a store with conditional writes")


NOW = 1e9


@pytest.mark.parametrize(
    ("there_s", "level", "words"),
    [
        (NOW - 1.0, Level.OK, "as here"),
        (NOW + 3.0, Level.OK, "as here"),
        (NOW - 61.0, Level.WARN, "the target's is 60.0 s behind this host's"),
        (NOW + 62.0, Level.WARN, "the target's is 60.0 s ahead of this host's"),
        (None, Level.NOTE, "does not send its time"),
    ],
)
def test_a_clock_that_differs(there_s: float | None, level: Level, words: str) -> None:
    """Asked between NOW and two seconds later; the answer is in whole seconds."""
    found: Finding = clock(NOW, NOW + 2.0, there_s, 1.0)
    assert found.level is level
    assert words in found.words
    assert level is not Level.WARN or "NTP" in found.words


def test_options_of_access_belong_to_a_url(snapfs: Snapfs, tmp_path: Path) -> None:
    for words in (("--ca", tmp_path, tmp_path), ("--targets",), ("--targets", "file:///x")):
        assert snapfs("doctor", *words, check=False).returncode == 2
