"""Where a mirror listens: `[::]`, which its systemd unit names, is every address of the host, of IPv4 too."""

from __future__ import annotations

import re
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.fakes.patience import PATIENCE_S
from tests.fakes.targets.mirror_process import REPLICATOR

ROOT = Path(__file__).resolve().parents[3]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this host has no IPv6")
def test_all_addresses_are_those_of_both_families(tmp_path: Path) -> None:
    unit = (ROOT / "systemd/snapfs-replicator.service").read_text()
    host = re.findall(r"^Environment=LISTEN=(.*):8700$", unit, re.MULTILINE)
    assert host == ["[::]"]
    command = [*REPLICATOR, "serve", "--root", str(tmp_path), "--listen", f"{host[0]}:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_S)[0]
        first = process.stdout.readline()
        port = int(first.rpartition(":")[2])
        try:
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, port), timeout=PATIENCE_S).close()
        finally:
            process.terminate()
        second = process.stdout.read()
    assert process.returncode == 0
    assert [first, second] == [f"listening on http://[::]:{port}\n", f"listening on http://0.0.0.0:{port}\n"]
