"""Storms of connections: those that are only held open keep no client out of a mirror, and its memory goes back."""

from __future__ import annotations

import http.client
import selectors
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import trustme

from replicator.mirror.connection_limits import group_of
from snapfs.store.protocol import wire
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.mirror_process import MirrorProcess

STORM = 600
SLACK_BYTES = 48 << 20


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    """Over TLS."""
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    process = MirrorProcess(tmp_path / "root", "--tls-cert", str(pem), "--tls-key", str(pem))
    process.start()
    process.tls = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    yield process
    process.stop()


class Storm:
    """Connections that are opened, some with their handshake done, and without a request."""

    def __init__(self, mirror: MirrorProcess, addresses: list[str], *, handshake: bool) -> None:
        assert mirror.tls is not None
        self._open: list[socket.socket] = []
        for address in addresses:
            sock = socket.socket()
            sock.settimeout(20)
            self._open.append(sock)
            with suppress(OSError):  # the mirror has closed it
                sock.bind((address, 0))
                sock.connect(("127.0.0.1", mirror.port))
                if handshake:
                    shake_hands(sock, mirror.tls)

    def held(self) -> int:
        """How many of them the mirror has not closed."""
        count = 0
        with selectors.DefaultSelector() as selector:
            for sock in self._open:
                if sock.fileno() >= 0:
                    sock.setblocking(False)
                    selector.register(sock, selectors.EVENT_READ)
            readable = {key.fileobj for key, _ in selector.select(0)}
        for sock in self._open:
            is_open = sock.fileno() >= 0
            if is_open and sock in readable:
                try:
                    is_open = bool(sock.recv(1 << 16))
                except BlockingIOError:
                    pass
                except OSError:
                    is_open = False
            count += is_open
        return count

    def close(self) -> None:
        for sock in self._open:
            sock.close()


def shake_hands(sock: socket.socket, context: ssl.SSLContext) -> None:
    """TLS over a socket that stays ours, whenever the mirror closes it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            tls.do_handshake()
            return sock.sendall(outgoing.read())
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            data = sock.recv(1 << 16)
            if not data:
                return None
            incoming.write(data)


def get(mirror: MirrorProcess, address: str, path: str = wire.HEALTH_PATH) -> bytes:
    """One request from this address. Raises OSError, HTTPException if the mirror does not let it in."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", mirror.port, timeout=PATIENCE_S, source_address=(address, 0), context=mirror.tls
    )
    with closing(connection):
        connection.request("GET", path)
        return connection.getresponse().read()


def is_let_in(mirror: MirrorProcess, address: str) -> bool:
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        # SSLSocket._create of the standard library forgets a socket that its peer has reset before the handshake.
        try:
            return b"ok" in get(mirror, address)
        except (OSError, http.client.HTTPException):
            return False


@pytest.mark.parametrize("handshake", [True, False])
def test_idle_connections_of_one_address_keep_no_other_out(mirror: MirrorProcess, handshake: bool) -> None:
    """600 idle TLS connections lock a mirror for 30 s: now no client of another address, and those of this one wait."""
    with closing(Storm(mirror, ["127.0.0.1"] * STORM, handshake=handshake)) as storm:
        assert is_let_in(mirror, "127.0.0.2")
        while not is_let_in(mirror, "127.0.0.1"):
            assert storm.held(), "they had to go first"
            time.sleep(0.2)
        assert storm.held() > 0
        assert storm.held() <= 128 + 2


def test_idle_connections_of_many_addresses_make_room_and_authenticated_ones_stay(mirror: MirrorProcess) -> None:
    known = http.client.HTTPSConnection("127.0.0.1", mirror.port, timeout=PATIENCE_S, context=mirror.tls)
    headers = {"Authorization": f"Bearer {mirror.admin}"}

    def count_refused() -> int:
        known.request("GET", wire.volumes_path(), headers=headers)
        answer = known.getresponse()
        answer.read()
        return answer.status

    with closing(known):
        assert count_refused() == 200
        place = known.sock
        addresses = [f"127.0.{1 + at // 200}.{1 + at % 200}" for at in range(STORM)]
        with closing(Storm(mirror, addresses, handshake=False)) as storm:
            while not is_let_in(mirror, "127.0.9.9"):
                assert storm.held(), "they had to go first"
                time.sleep(0.2)
            assert storm.held() > 0
            assert count_refused() == 200
            assert known.sock is place


def test_what_a_storm_takes_of_memory_goes_back(mirror: MirrorProcess) -> None:
    for _ in range(20):
        get(mirror, "127.0.0.1")
    before = resident_bytes(mirror.pid)
    for _ in range(3):
        addresses = [f"127.0.{1 + at // 200}.{1 + at % 200}" for at in range(STORM)]
        with closing(Storm(mirror, addresses, handshake=True)):
            assert resident_bytes(mirror.pid) < before + (256 << 20)
    eventually(lambda: resident_bytes(mirror.pid) <= before + SLACK_BYTES, f"a fall to {before} bytes")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_what_counts_as_one_address() -> None:
    assert group_of("192.0.2.7") == group_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert group_of("2001:db8:1:2:3::1") == group_of("2001:db8:1:2:ffff::9") != group_of("2001:db8:1:3::1")
    assert group_of("fe80::1%eth0") == group_of("fe80::2")
    assert group_of("somewhere") == "somewhere"
