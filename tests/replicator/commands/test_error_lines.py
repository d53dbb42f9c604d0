"""Wrong tokens, URLs and certificates: one clear line, which never holds the token, and the exit code 3."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from replicator.commands import replicator_cli
from snapfs.base.blocks import Disk
from snapfs.base.errors import SnapfsError
from snapfs.transfer.lazy.remount import remount
from snapfs.transfer.sources.source_access import Access
from tests.fakes.replication.push_source import SourceVolume
from tests.fakes.targets.mirror_process import MirrorProcess

SECRET = "snapfs_00000000_secret"
TOKENS = {
    "unknown": SECRET.encode(),
    "two-lines": f"{SECRET}\n{SECRET}\n".encode(),
    "no-text": b"\xff\xfe" + SECRET.encode(),
    "empty": b"",
}
URLS = {
    "http://127.0.0.1:1": "Connection refused",
    "https://127.0.0.1:PORT": "does not speak TLS",
    "http://127.0.0.1:abc": "abc",
    "http://[::1": "Invalid IPv6 URL",
    "http://no-such-host.invalid": "Name or service not known",
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorProcess]:
    process = MirrorProcess(tmp_path_factory.mktemp("mirror") / "root")
    process.start()
    yield process
    process.stop()


def error_line(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command writes to stderr: one line, besides what is logged."""
    assert replicator_cli.run(list(arguments)) == 3
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    assert SECRET not in lines[0]
    return lines[0]


def not_mounted(tmp_path: Path, url: str, access: Access) -> str:
    with pytest.raises(SnapfsError) as caught:
        remount(str(tmp_path / "new"), [url], Disk(), access=access)
    assert SECRET not in str(caught.value)
    assert str(caught.value).count(url) == 1
    assert not list(tmp_path.glob("new*"))
    return str(caught.value)


def not_pushed(tmp_path: Path, capfd: pytest.CaptureFixture[str], url: str, **access: str) -> str:
    source = SourceVolume(tmp_path / "source", 3, {"target": [{"url": url, **access}]})
    source.grow(1)
    source.close()
    return error_line(capfd, "push", "--once", str(source.path))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.agent.retry_rules.FIRST_WAIT_SECONDS", 0.001)


@pytest.mark.parametrize("kind", TOKENS)
def test_tokens(mirror: MirrorProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    token, url = tmp_path / "token", f"http://127.0.0.1:{mirror.port}"
    token.write_bytes(TOKENS[kind])
    for line in (
        error_line(capfd, "list", url, "--token-file", str(token)),
        error_line(capfd, "promote", f"{url}/pg", "--token-file", str(token)),
        not_pushed(tmp_path, capfd, f"{url}/pg", token_file=str(token)),
        not_mounted(tmp_path, f"{url}/pg", Access(str(token))),
    ):
        assert "token" in line


@pytest.mark.parametrize("url", URLS)
def test_urls(mirror: MirrorProcess, tmp_path: Path, capfd: pytest.CaptureFixture[str], url: str) -> None:
    place = url.replace("PORT", str(mirror.port))
    for line in (
        error_line(capfd, "list", place),
        not_pushed(tmp_path, capfd, f"{place}/pg"),
        not_mounted(tmp_path, f"{place}/pg", Access()),
    ):
        assert URLS[url] in line
        assert place in line


def test_certificates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    authority, token = trustme.CA(), tmp_path / "token"
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("host-b").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "mine.pem"))
    ca, mine, server = (str(tmp_path / name) for name in ("ca.pem", "mine.pem", "server.pem"))
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    other = str(tmp_path / "other.pem")
    trustme.CA().cert_pem.write_to_path(other)
    certificates = {
        "certificate has expired": (authority.issue_cert("127.0.0.1", not_after=past), ca),
        "certificate is not valid for '127.0.0.1'": (authority.issue_cert("elsewhere"), ca),
        "unable to get local issuer certificate": (authority.issue_cert("127.0.0.1"), other),
    }
    for number, (why, (issued, trusted)) in enumerate(certificates.items()):
        issued.private_key_and_cert_chain_pem.write_to_path(server)
        process = MirrorProcess(tmp_path / f"root-{number}", "--tls-cert", server, "--tls-key", server)
        process.start()
        token.write_text(process.admin)
        url, at = f"https://127.0.0.1:{process.port}", tmp_path / str(number)
        at.mkdir()
        for line in (
            error_line(capfd, "list", url, "--token-file", str(token), "--ca", trusted),
            not_pushed(at, capfd, f"{url}/pg", token_file=str(token), ca=trusted),
            not_mounted(at, f"{url}/pg", Access(str(token), trusted)),
        ):
            assert why in line
        process.stop()
    process = MirrorProcess(tmp_path / "root", "--tls-cert", server, "--tls-key", server, "--client-ca", ca)
    process.tls = ssl.create_default_context(cafile=ca)
    process.tls.load_cert_chain(mine)
    process.start()
    token.write_text(process.admin)
    process.client().create()
    arguments = f"https://127.0.0.1:{process.port}", "--token-file", str(token), "--ca", ca
    error_line(capfd, "list", *arguments)
    assert replicator_cli.run(["list", *arguments, "--certificate", mine, "--certificate-key", mine]) == 0
    assert "pg: no snapshot yet" in capfd.readouterr().out
    process.stop()
