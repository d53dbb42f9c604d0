"""`snapfs audit`: every act with who asked for it, and a history that was rewritten or shortened is noticed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.base.blocks import Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import EXIT_ATTENTION, EXIT_OK, UserError
from snapfs.commands.overview.audit_check import Proof
from snapfs.commands.overview.audit_command import act_of, asked, since_ns
from snapfs.store.audit.audit_trail import Recorded, Trail, own_findings, unproven, witnessed
from snapfs.store.log.claims import Succession, Takeover
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import SealStats, SnapshotRecord
from snapfs.store.objects.format import Pointer
from tests.fakes.patience import eventually
from tests.fakes.targets.mirror_process import REPLICATOR

ROOT = bytes(16)


def record(number: int, head: str = "", root: bytes = ROOT, generation: int = 1) -> SnapshotRecord:
    return SnapshotRecord(
        SnapshotNumber(number), None, Generation(generation), None, 0, 0, "control", Pointer(Number(1), root),
        Number(1), SealStats(), log_head=head,
    )  # fmt: skip


def trail(*snapshots: tuple[int, str], began: int = 0, takeovers: tuple[Takeover, ...] = ()) -> Trail:
    """Snapshots at lines 10, 20, ..., each with the head before it, which it states."""
    listed = {n: [Recorded(10 * (at + 1), ROOT.hex(), head, head)] for at, (n, head) in enumerate(snapshots)}
    return Trail(lines=99, snapshots=listed, began=began, takeovers=takeovers)


OURS = trail((1, "a"), (2, "b"), (4, "d"))
TAKEN = trail((5, "e"), (6, "f"), began=15, takeovers=(Takeover(Generation(2), SnapshotNumber(5)),))
FOREIGN = Trail(99, {5: [Recorded(10, ROOT.hex(), "e", "x")]}, 15, TAKEN.takeovers)
TABLE: list[tuple[Trail, list[SnapshotRecord], int, int, str]] = [
    (OURS, [], 1, 0, ""),
    (OURS, [record(1, "a"), record(2, "b")], 1, 2, ""),
    (OURS, [record(1, "a"), record(2, "")], 1, 1, ""),  # the writer was of an earlier version then
    (OURS, [record(2, "x")], 1, 0, "it has witnessed another log before snapshot 2 than there is before line 20"),
    (OURS, [record(5, "e")], 1, 0, "it has snapshot 5, and the log ends with 4: its end is missing"),
    (OURS, [record(5, "e", generation=2)], 1, 0, ""),  # another host is the writer now
    (OURS, [record(3, "c")], 1, 0, "it has snapshot 3, which the log does not have"),
    (OURS, [record(2, "b", b"\x01" * 16)], 1, 0, "snapshot 2 is another one there than the log has"),
    (trail((3, "c")), [record(1, "a"), record(3, "c")], 1, 3, ""),  # a window, or a clone: it began later
    (TAKEN, [record(4, "d"), record(5, "e"), record(6, "f", generation=2)], 2, 6, ""),
    (TAKEN, [record(6, "z", b"\x01" * 16)], 2, 0, ""),  # what the former writer made after the takeover's snapshot
    (TAKEN, [record(6, "z", generation=2)], 2, 0, "it has witnessed another log before snapshot 6"),
    (FOREIGN, [record(5, "x")], 2, 5, ""),  # a record of the former host's log, as it was taken over
    (FOREIGN, [record(5, "y")], 2, 0, "it has witnessed another log before snapshot 5"),
]


@pytest.mark.parametrize(("ours", "there", "generation", "through", "finding"), TABLE)
def test_what_a_target_has_witnessed(
    ours: Trail, there: list[SnapshotRecord], generation: int, through: int, finding: str
) -> None:
    found, findings = witnessed(ours, "m", there, Generation(generation))
    assert found == through
    assert len(findings) == bool(finding)
    assert all(each.startswith(f"m: {finding}") for each in findings)


@pytest.mark.parametrize(
    ("known", "signed_through", "is_proven"),
    [
        ([], 0, False),
        ([Succession(2, "b", 5)], 0, True),
        ([Succession(2, "b", 6), Succession(3, "b", 5)], 0, False),
        ([], 15, True),
        ([], 14, False),
    ],
)
def test_a_takeover_that_nobody_knows_of_is_not_proven(
    known: list[Succession], signed_through: int, is_proven: bool
) -> None:
    """A line that says there was one hides all before it: `--check` said that nothing was wrong."""
    forged = replace(TAKEN, takeover_lines=(15,))
    lines = list(unproven(forged, known, signed_through))
    assert not lines if is_proven else "line 15: no target knows of a takeover in generation 2" in lines[0]
    proof = Proof(unproven=lines, through={"mirror": 6})
    assert proof.exit_code == (EXIT_OK if is_proven else EXIT_ATTENTION)


def test_a_log_that_contradicts_itself() -> None:
    assert list(own_findings(OURS)) == list(own_findings(FOREIGN)) == []
    (found,) = own_findings(Trail(9, {2: [Recorded(7, ROOT.hex(), "a", "b")]}))
    assert found.startswith("line 7: the log before snapshot 2 is not what it was")
    (found,) = own_findings(Trail(9, rebuilt_ns=[1]))
    assert "made anew" in found


def test_since() -> None:
    now_ns = 1_800_000_000 * 10**9
    assert since_ns("2h", now_ns) == since_ns("2h ago", now_ns) == now_ns - 7200 * 10**9
    assert since_ns("1970-01-02", now_ns) == since_ns("1970-01-02T00:00:00Z", now_ns) == 86400 * 10**9
    for wrong in ("yesterday", "2 fortnights", "2026-13-01"):
        with pytest.raises(UserError, match="--since"):
            since_ns(wrong, now_ns)


def test_an_act_and_who_asked_for_it() -> None:
    table = [
        (Event("command", 0, {"command": "drop", "by": {"uid": 0}}), "drop", "root (uid 0)"),
        (Event("command", 0, {"command": "drop", "by": {}}), "drop", "-"),
        (Event("dropped", 0, {"by": "policy"}), "drop", "policy"),
        (Event("claimed", 0, {"holder": "h1"}), "claim", "h1"),
        (Event("snapshot", 0, {"trigger": "interval"}), "seal", "interval"),
        (Event("snapshot", 0, {"trigger": "control"}), "seal", "control"),
        (Event("snapshot", 0, {"trigger": "control", "by": {"uid": 0}}), "seal", "root (uid 0)"),
        (Event("of-a-later-version", 0, {}), "of-a-later-version", "-"),
    ]
    assert [(act_of(event), asked(event)) for event, _, _ in table] == [(act, who) for _, act, who in table]


# -- a volume with a target and a key


def replicator(*words: str | Path) -> None:
    subprocess.run([*REPLICATOR, *map(str, words)], check=True, capture_output=True, timeout=120)


def checkpoints(volume: Path) -> int:
    return (volume / "store" / "snapshots.log").read_bytes().count(b'"kind":"checkpoint"')


@pytest.fixture
def audited(snapfs: Any, mount: Any, volume_dir: Path, tmp_path: Path) -> Path:
    """Unmounted: two snapshots at a target, one dropped since, acts after that, and signed checkpoints."""
    key = tmp_path / "audit.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    mounted = mount()
    snapfs("umount", mounted.path)
    path = volume_dir / "volume.toml"
    text = path.read_text().replace("[audit]\n", f'[audit]\nsign_key = "{key}"\nevery = "off"\n')
    path.write_text(f'{text}\n[[replication.target]]\nurl = "file://{tmp_path}/second"\nname = "second"\n')
    mounted = mount()

    def signed_snapshot(name: str) -> None:
        before = checkpoints(volume_dir)
        mounted.snapshot(name)
        eventually(lambda: checkpoints(volume_dir) > before, "a checkpoint behind the snapshot")

    for name in ("one", "two", "three"):
        (mounted.path / name).write_text(name)
        signed_snapshot(name)
    mounted.command("drop one")
    signed_snapshot("four")
    replicator("push", "--once", "--new", volume_dir)
    snapfs("umount", mounted.path)
    return volume_dir


def proof(snapfs: Any, volume: Path, *more: str | Path) -> tuple[int, dict[str, Any]]:
    done = snapfs("audit", volume, "--check", "--json", *more, check=False)
    assert done.returncode in (0, 5, 8), done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert facts["ok"] == (done.returncode == 0)
    return done.returncode, facts


def rewrite(volume: Path, change: Callable[[list[Event]], list[Event]]) -> None:
    """Make the log anew, with a chain that is in order: what who can write the file can do."""
    path = volume / "store" / "snapshots.log"
    log = SnapshotLog(str(path), Disk(), readonly=True)
    first, *rest = log.follow()
    log.close()
    SnapshotLog.create(str(path), Disk(), first.fields["volume"], lambda: first.time_ns, change(rest))


def _at(lines: list[bytes], words: bytes) -> int:
    return next(at for at, line in enumerate(lines) if words in line)


def test_every_act_is_there_and_a_rewritten_history_is_noticed(snapfs: Any, audited: Path, tmp_path: Path) -> None:
    acts = [json.loads(line) for line in snapfs("audit", audited, "--json").stdout.splitlines()]
    done = [(each["act"], each["by"]) for each in acts]
    assert {("seal", "root (uid 0)"), ("drop", "person"), ("drop", "root (uid 0)"), ("checkpoint", "-")} <= set(done)
    assert "drop" in snapfs("audit", audited).stdout
    assert snapfs("audit", audited, "--since", "2999-01-01").stdout == ""
    there = snapfs("audit", f"file://{tmp_path}/second").stdout
    assert [line.split()[1] for line in there.splitlines()] == ["seal"] * 3

    code, facts = proof(snapfs, audited)
    assert (code, facts["witnessed"], facts["findings"]) == (0, {"second": 4}, [])
    assert facts["checkpoints"] == 4
    good = (audited / "store" / "snapshots.log").read_bytes()

    def noticed(*words: str) -> None:
        code, facts = proof(snapfs, audited)
        assert code == 5
        for word in words:
            assert any(word in each for each in facts["findings"]), facts["findings"]
        (audited / "store" / "snapshots.log").write_bytes(good)
        (audited / "store" / "snapshots.end").unlink(missing_ok=True)

    # Who dropped it is another one now, and everything after it follows.
    rewrite(audited, lambda events: [
        Event(e.kind, e.time_ns, e.fields | ({"by": {"uid": 77}} if e.fields.get("command") == "drop" else {}))
        for e in events
    ])  # fmt: skip
    noticed("second: it has witnessed another log before snapshot 4", "line", "is not what it was", "the checkpoint")
    # The same by who also makes the records state the new past: only the target and the key know better.
    no_heads = ("log_head",)
    rewrite(audited, lambda events: [
        Event(e.kind, e.time_ns, {k: v for k, v in e.fields.items() if k not in no_heads})
        for e in events if e.fields.get("command") != "drop" and e.kind != "checkpoint"
    ])  # fmt: skip
    noticed("second: it has witnessed another log before snapshot 4", "no checkpoint is signed")
    rewrite(audited, lambda events: [e for e in events if e.fields.get("number") != 4])
    noticed("second: it has snapshot 4, and the log ends with 3: its end is missing")
    lines = good.splitlines(keepends=True)
    (audited / "store" / "snapshots.log").write_bytes(b"".join(lines[: _at(lines, b'"number":4,')]))
    noticed("second: it has snapshot 4, and the log ends with 3")
    (audited / "store" / "snapshots.log").write_bytes(good.replace(b'"control"', b'"cantrol"', 1))
    noticed("is damaged")
    assert proof(snapfs, audited)[0] == 0


def test_checkpoints_are_of_one_key_and_a_target_that_is_silent_is_named(
    snapfs: Any, audited: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", other], check=True, capture_output=True)
    public = tmp_path / "audit.pub"
    words = ["openssl", "pkey", "-in", tmp_path / "audit.key", "-pubout", "-out", public]
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "second").rename(tmp_path / "away")
    code, facts = proof(snapfs, audited, "--public-key", public)
    assert (code, facts["witnessed"], len(facts["unknown"])) == (8, {}, 1)
    code, facts = proof(snapfs, audited, "--public-key", other)
    assert (code, len(facts["findings"])) == (5, 4)
    refused = snapfs("audit", audited, "--check", "--public-key", audited / "volume.toml", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (3, 1)


def test_one_more_act_by_a_rebuilt_log(snapfs: Any, audited: Path) -> None:
    (audited / "store" / "snapshots.log").unlink()
    snapfs("verify", "--repair", audited)
    code, facts = proof(snapfs, audited)
    assert code == 5
    assert any("made anew" in each for each in facts["findings"])
