"""The small persistent files: each has one reader, which takes nothing damaged, cut off or of a later format for facts.

Every single-bit flip and every truncation of every one of them is found and named; a
later format is refused by each, and nothing is touched; what was written before there were checksums is read for ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk, SnapshotNumber
from snapfs.base.errors import CorruptionError, SnapfsError, UserError, VersionError
from snapfs.base.json_file import JsonFile
from snapfs.base.volumes.volume import Volume
from snapfs.daemon import supervisor_origin
from snapfs.daemon.supervision import descriptor_store, signal_pipe, supervisor_status, supervisor_upgrade
from snapfs.daemon.supervision.daemon_handle import Held
from snapfs.daemon.supervision.mount_record import MountRecord
from snapfs.daemon.supervision.supervisor_state import STATE, HeldMount
from snapfs.daemon.supervisor import Supervisor
from snapfs.store.crypto.keys import KEYS, read_keys
from snapfs.store.log import replica_state
from snapfs.store.log.holds import HOLD, Holds
from snapfs.store.repair.suspects import SUSPECTS_FILE, write_suspects
from snapfs.transfer.failover.fence_file import FENCE_JSON, read_fenced
from snapfs.transfer.failover.standby_file import STANDBY, read_standby
from snapfs.transfer.lazy.origin_file import ORIGIN, read_origin
from tests.golden import make_small_v1 as golden

GOLDEN = Path(__file__).parent.parent / "golden" / "small-v1"
FILES: dict[str, JsonFile[Any]] = {
    "fenced.json": FENCE_JSON,
    "origin.json": ORIGIN,
    "standby.json": STANDBY,
    "keys.json": KEYS,
    "holds/host-b.json": HOLD,
    "replication.json": replica_state.REPLICATION,
    "suspects": SUSPECTS_FILE,
    "supervisor.json": supervisor_status.STATUS,
    "supervisor.state": STATE,
}


def flips(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_what_was_written_before_there_were_checksums_is_read() -> None:
    assert read_fenced(str(GOLDEN)) == golden.FENCED
    assert read_origin(str(GOLDEN)) == golden.ORIGIN
    assert read_origin(str(GOLDEN)).record == golden.RECORD  # type: ignore[union-attr]
    assert read_standby(str(GOLDEN)) == golden.STANDBY
    assert supervisor_status.read_status(str(GOLDEN)) == golden.STATUS
    assert STATE.read(str(GOLDEN / "supervisor.state")) == golden.STATE
    assert replica_state.read(str(GOLDEN / "replication.json"), golden.VOLUME_ID) == golden.REPLICATION
    suspects = SUSPECTS_FILE.read(str(GOLDEN / "suspects"))
    assert suspects is not None
    assert suspects.numbers == ["1000000000007", "1000000000009"]
    assert Holds(str(GOLDEN), Disk(), lambda: 0).held() == {3, 5}
    wrapped = read_keys(str(GOLDEN))
    assert wrapped is not None
    assert golden.OWNER.unwrap(wrapped, "there").seed_number == golden.SEED
    volume = Volume.open(str(GOLDEN / "volume"), Disk())
    assert (volume.volume_id, volume.seed, volume.generation) == (golden.VOLUME_ID, golden.SEED, 3)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_old_form_is_the_same_in_the_new_one(name: str, tmp_path: Path) -> None:
    kind = FILES[name]
    before = kind.read(str(GOLDEN / name))
    kind.write("test", str(tmp_path / "file"), before, Disk())
    after = kind.read(str(tmp_path / "file"))
    if isinstance(after, dict):
        after = {key: value for key, value in after.items() if key in before}
    assert after == before
    decoded = json.loads((tmp_path / "file").read_bytes())
    assert decoded["snapfs"] == kind.kind
    assert decoded["format"] == 1


@pytest.mark.parametrize("name", FILES)
def test_every_flip_and_every_truncation_is_found_and_names_the_file(name: str) -> None:
    kind = FILES[name]
    data = kind.encode(kind.decode((GOLDEN / name).read_bytes(), name))
    cut = (data[:size] for size in range(len(data)))
    for bad in (*flips(data), *cut, data + b"x", data + b"\n", b"\0" * len(data)):
        with pytest.raises((CorruptionError, VersionError), match="the-file"):
            kind.decode(bad, "the-file")


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_of_the_old_form_is_found(name: str) -> None:
    """Its flips cannot be, but none of them may be a traceback."""
    kind, data = FILES[name], (GOLDEN / name).read_bytes()
    if name == "suspects":
        return  # a list of lines
    for bad in (data[:size] for size in range(len(data.rstrip()))):
        with pytest.raises(CorruptionError, match="the-file"):
            kind.decode(bad, "the-file")
    for bad in flips(data):
        with contextlib.suppress(CorruptionError, VersionError):
            kind.decode(bad, "the-file")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_new", [False, True], ids=["old form", "new form"])
def test_a_later_format_is_refused(name: str, is_new: bool) -> None:
    kind = FILES[name]
    decoded = kind.decode((GOLDEN / name).read_bytes(), name)
    fields = json.loads(kind.encode(decoded))
    later = {key: value for key, value in fields.items() if key not in ("snapfs", "checksum")} | {"format": 99}
    if name == "suspects" and not is_new:
        return  # that form had none
    data = JsonFile(kind.kind, dict[str, Any]).encode(later) if is_new else json.dumps(later).encode()
    with pytest.raises(VersionError, match=r"the-file has format version 99.*use a newer snapfs"):
        kind.decode(data, "the-file")


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_place_of_another_is_found(name: str) -> None:
    kind = FILES[name]
    for other, of in FILES.items():
        if other != name:
            data = of.encode(of.decode((GOLDEN / other).read_bytes(), other))
            with pytest.raises(CorruptionError, match="another kind"):
                kind.decode(data, "the-file")


def test_a_missing_file_is_none_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    assert read_fenced(str(tmp_path)) is None
    (tmp_path / "fenced.json").write_bytes(b"")
    with pytest.raises(CorruptionError, match=r"fenced\.json"):
        read_fenced(str(tmp_path))


def test_a_damaged_hold_holds_everything_and_a_brief_one_may_end_in_a_power_cut(tmp_path: Path) -> None:
    holds = Holds(str(tmp_path), Disk(), lambda: 0)
    holds.take("a", [SnapshotNumber(1)], 10)
    holds.take("b", [SnapshotNumber(2)], 10, durable=False)
    (tmp_path / "holds" / "b.brief").write_bytes(b"")
    assert holds.held() == {1}
    (tmp_path / "holds" / "b.brief").write_bytes(b"\0" * 90)
    assert holds.held() == {1}
    (tmp_path / "holds" / "b.brief").write_bytes(b"half")
    with pytest.raises(CorruptionError, match=r"b\.brief"):
        holds.held()
    assert holds.held_of([SnapshotNumber(5), SnapshotNumber(6)]) == {5, 6}
    holds.take("b", [SnapshotNumber(3)], 10)
    assert holds.held() == {1, 3}
    assert not (tmp_path / "holds" / "b.brief").exists()


def test_every_flip_and_truncation_of_a_volumes_identity_is_found_and_named(tmp_path: Path) -> None:
    """The settings are a person's: what is wrong there is named, with the exit code of a wrong setting."""
    path = tmp_path / "volume"
    volume = Volume.create(str(path), Disk(), seed=golden.SEED, volume_id=golden.VOLUME_ID)
    volume.lock()
    volume.bump_generation()
    volume.unlock()
    toml = path / "volume.toml"
    data = toml.read_bytes()
    begin, end = data.index(b"[volume]"), data.index(b"checksum = ") + len(b'checksum = "0123456789abcdef"\n')
    facts = (golden.VOLUME_ID, golden.SEED, 2)
    kinds = set()
    for at in range(end):
        for bit in range(8):
            toml.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            kinds.add(_outcome(path, facts, may_be_user=at < begin))
    for size in range(len(data)):
        toml.write_bytes(data[:size])
        kinds.add(_outcome(path, facts, may_be_user=size >= end))
    assert kinds >= {CorruptionError, VersionError, None}


def _outcome(path: Path, facts: tuple[str, int, int], *, may_be_user: bool) -> type | None:
    try:
        volume = Volume.open(str(path), Disk())
    except (CorruptionError, VersionError, UserError) as error:
        found = error
    else:
        assert (volume.volume_id, volume.seed, volume.generation) == facts
        return None
    assert "volume.toml" in str(found)
    assert may_be_user or not isinstance(found, UserError), found
    return type(found)


def test_a_volume_of_the_time_before_gets_a_checksum_with_its_next_generation(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "volume", tmp_path / "volume")
    volume = Volume.open(str(tmp_path / "volume"), Disk())
    volume.lock()
    volume.bump_generation()
    volume.unlock()
    assert "checksum = " in (tmp_path / "volume" / "volume.toml").read_text()
    assert Volume.open(str(tmp_path / "volume"), Disk()).generation == 4


def test_the_list_of_suspects_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_suspects(str(tmp_path), [7, 1 << 63], Disk())
    found = SUSPECTS_FILE.read(str(tmp_path / "suspects"))
    assert found is not None
    assert [int(number, 16) for number in found.numbers] == [7, 1 << 63]


def test_a_damaged_status_of_the_supervisor_signals_nobody(tmp_path: Path) -> None:
    (tmp_path / "supervisor.json").write_bytes(
        supervisor_status.STATUS.encode(golden.STATUS).replace(b"100", b"101", 1)
    )
    with pytest.raises(SnapfsError, match=r"supervisor\.json"):
        supervisor_status.read_status(str(tmp_path))


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        ("import snapfs.daemon.supervisor as s; print(s.STATE.version)", ""),
        ("print(0)", "reads supervisor state up to format 0, and this is 1"),
        ("raise SystemExit('it is broken')", "cannot be started: it is broken"),
    ],
)
def test_an_upgrade_asks_first_whether_what_is_installed_can_go_on(
    probe: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A supervisor state of another version left the mount without a supervisor."""
    monkeypatch.setattr(supervisor_upgrade, "STATE_VERSION_PROBE", probe)
    monkeypatch.setattr(supervisor_upgrade.os, "execv", _exec)
    held = Held(-1, b"\0", 0)
    record = MountRecord("/mnt", str(tmp_path / "supervisor.json"), -1, HeldMount("/mnt", held), -1)
    supervisor = Supervisor(record)
    supervisor._signals = signal_pipe.SignalPipe()
    try:
        with pytest.raises(ExecutedError) if not why else contextlib.nullcontext():
            supervisor._upgrade(held)
    finally:
        supervisor._signals.release()
    if not why:
        return
    facts = supervisor_status.read_status(str(tmp_path))
    assert facts is not None
    assert facts["state"] == "serving"
    assert facts["words"].startswith(supervisor_upgrade.NOT_UPGRADED)
    assert why in facts["words"]


class ExecutedError(Exception):
    """The program would be another one now."""


def _exec(*_: object) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal_pipe.ALL)
    os.close(int(os.environ.pop(supervisor_upgrade.RESUME_VARIABLE)))
    raise ExecutedError


def test_a_state_of_a_later_supervisor_is_refused_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is kept, for the snapfs that can read it."""
    carrier = os.memfd_create("test", 0)
    os.write(carrier, json.dumps({"format": 99}).encode())
    monkeypatch.setenv(supervisor_upgrade.RESUME_VARIABLE, str(carrier))
    with pytest.raises(VersionError, match="handed over has format version 99"):
        supervisor_origin.resumed("/nowhere")
    assert os.environ[supervisor_upgrade.RESUME_VARIABLE] == str(carrier)
    os.close(carrier)
    fds = {
        descriptor_store.STATE_NAME: os.memfd_create("test", 0),
        descriptor_store.DEVICE_NAME: -1,
        descriptor_store.LOCK_NAME: -1,
    }
    os.write(fds[descriptor_store.STATE_NAME], json.dumps({"format": 99}).encode())
    forgotten: list[str] = []
    monkeypatch.setattr(descriptor_store.systemd, "kept", lambda: fds)
    monkeypatch.setattr(descriptor_store.systemd, "forget", forgotten.append)
    with pytest.raises(VersionError, match="format version 99"):
        supervisor_origin.kept("/mnt", "/nowhere")
    assert not forgotten
    os.close(fds[descriptor_store.STATE_NAME])
