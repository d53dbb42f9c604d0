"""What the console shows, as pure functions: words, buckets, plots, forecasts, rows; sessions; the rate of logins."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.console import console_sessions, login_rate
from replicator.console.console_pages import _pages
from replicator.console.console_sessions import Sessions
from replicator.console.console_site import is_same_origin
from replicator.console.login_rate import LoginRate
from replicator.console.views import display_text as text
from replicator.console.views import page_models, plots, volume_history
from replicator.console.views.arrival_buckets import RANGES, BucketRing, best_range
from replicator.console.views.audit_lines import audit_line
from replicator.console.views.gathered_facts import HeldFor, SnapshotFacts
from replicator.console.views.space_forecast import Forecast, forecast
from replicator.console.views.volume_history import Drill, Histories, VolumeHistory
from replicator.mirror.tokens import Token
from snapfs.base.blocks import Disk
from snapfs.store.gates.gates import NO_GATES, Gates
from snapfs.store.log.log_lines import Event
from snapfs.store.log.snapshot_log import SnapshotLog
from snapfs.store.log.snapshot_records import DAMAGED, SnapshotRecord
from tests.fakes.histories.history import History
from tests.fakes.histories.mirror_world import make_volume

NOW_NS = 1_796_000_000 * 10**9
HOUR, DAY = 3600.0, 86400.0


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> SnapshotRecord:
    history = History(tmp_path_factory.mktemp("history") / "store", 1)
    history.grow(1, steps=2)
    (made,) = history.records
    history.close()
    return replace(made, cut_time_ns=NOW_NS - 60 * 10**9, seal_time_ns=NOW_NS - 58 * 10**9)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain name", "plain name"), ("a\u202eb\u200bc", "a\\u202eb\\u200bc"), ("x\ny\x00", "x\\u000ay\\u0000"),
        ("\ud800", "\\ud800"), ("é日本", "é日本"), ("a" * 100, "a" * 80 + "…"),
    ],
)  # fmt: skip
def test_a_name_hides_and_controls_nothing(given: str, shown: str) -> None:
    assert text.clean(given) == shown


def test_sizes_spans_and_ages() -> None:
    assert [text.size(count) for count in (0, 1023, 1536, 300 << 20, 5 << 40)] == [
        "0 B", "1023 B", "1.5 KiB", "300 MiB", "5.0 TiB",
    ]  # fmt: skip
    assert [text.span(seconds) for seconds in (-1, 0.04, 4.24, 65, 60, 3600, 90061, 86405)] == [
        "0 ms", "40 ms", "4.2 s", "1 min 5 s", "1 min", "1 h", "1 d 1 h", "1 d",
    ]  # fmt: skip
    assert [text.ago(NOW_NS - int(seconds * 1e9), NOW_NS) for seconds in (1, 7, 125, 7300, -120)] == [
        "just now", "7 s ago", "2 min ago", "2 h ago", "in 2 min",
    ]  # fmt: skip
    assert text.utc(-(1 << 63)).startswith("1677-")


def test_a_bucket_is_of_its_interval_alone() -> None:
    ring, start = BucketRing(RANGES[0]), 60 * 30_000_000
    ring.put(start, 10, 100, 2.0)
    ring.put(start + 59, 5, 50, 1.0)
    ring.put(start + 60, 1, 1, None)
    *_, first, second = ring.until(start + 60)
    assert (first.snapshots, first.stored_bytes, first.changed_bytes, first.lag_s) == (2, 15, 150, 2.0)
    assert (second.snapshots, second.lag_s) == (1, None)
    ring.put(start + 60 * 119, 7, 7, 0.5)
    assert sum(bucket.snapshots for bucket in ring.until(start + 60 * 119)) == 4
    ring.put(start + 60 * 120, 7, 7, 0.5)
    ring.put(start, 99, 99, 99.0)  # older than the ring reaches
    assert [bucket.snapshots for bucket in ring.until(start + 60 * 120) if bucket.snapshots] == [1, 1, 1]
    assert not any(bucket.snapshots for bucket in ring.until(start + 60 * 1000)), "what it left is not shown again"
    assert best_range(600).name == "2h"
    assert best_range(40 * DAY).name == "2d"


def test_a_plot_stays_in_its_area_and_says_what_it_shows() -> None:
    ring = BucketRing(RANGES[1])
    for at, lag_s in enumerate((0.01, 3.0, 700.0, 5e6)):
        ring.put(NOW_NS / 1e9 - at * 1800, 1 << (10 * at), 3 << (10 * at), lag_s)
    buckets = ring.until(NOW_NS / 1e9)
    for make in (plots.lag_plot, plots.churn_plot, plots.pace_plot):
        plot = make(buckets, RANGES[1])
        assert plot.bars
        for bar in (*plot.bars, *plot.back):
            assert 0 <= bar.x < bar.x + bar.width <= plots.WIDTH
            assert 0 <= bar.y < bar.y + bar.height <= plots.HEIGHT + 0.01
        assert all(0 <= label.place <= 100 for label in (*plot.x_labels, *plot.y_labels))
    assert plots.lag_plot(buckets, RANGES[1]).summary == "longest 57 d 20 h, median 11 min 40 s, last 10 ms"
    assert plots.lag_plot(BucketRing(RANGES[0]).until(0), RANGES[0]).is_empty
    assert plots.spark(buckets).count("M") == 4


def test_a_forecast_says_no_more_than_was_measured() -> None:
    start, free = NOW_NS / 1e9, 100 << 30
    assert forecast([], start, free, 0.0) == Forecast(None, None, start, 0.0, None)
    falling = [(start + at * 600, free - at * (1 << 20)) for at in range(100)]
    seen = forecast(falling, start + 100 * 600, falling[-1][1] - (1 << 20), 0.0)
    assert seen.trend_bytes_s == pytest.approx((1 << 20) / 600)
    assert seen.full_s == pytest.approx(falling[-1][1] / ((1 << 20) / 600), rel=0.01)
    jump = [(at, each - (50 << 30 if number > 97 else 0)) for number, (at, each) in enumerate(falling)]
    bent = forecast(jump, start + 100 * 600, jump[-1][1], 0.0)
    assert bent.trend_bytes_s == pytest.approx((1 << 20) / 600, rel=0.1), "one jump is no trend"
    assert forecast(falling[:3], start + 1800, free, 0.0).trend_bytes_s is None, "half an hour is too short"
    rising = forecast([(start, free - 999), (start + 7200, free)], start + 7300, free, 1000.0)
    assert (rising.full_s, rising.earliest_s) == (None, free / 1000)
    said = page_models.space_model(200 << 30, free, 10 << 30, rising, NOW_NS).statements
    assert said[0] == "Not filling up, as measured."
    assert said[1].startswith("82.4 MiB a day arrive: not full before ")


def test_a_row_shows_what_is_recorded_and_leaves_the_rest_open(record: SnapshotRecord) -> None:
    bare = page_models.snapshot_row(SnapshotFacts(record, 0, NO_GATES, frozenset(), (), 0, False), NOW_NS)
    assert (bare.sealed.text, bare.received, bare.verified.state, bare.drilled.state) == (
        "+2.0 s", page_models.NOT_KNOWN, "", "",
    )  # fmt: skip
    gates = Gates(drilled_ns=NOW_NS, passed=False, check="postgres")
    hold = HeldFor("a person", None, "x\u202e", True)
    full = SnapshotFacts(record, NOW_NS - 55 * 10**9, gates, frozenset({"off<site>"}), (hold,), NOW_NS + 10**9, True)
    row = page_models.snapshot_row(full, NOW_NS)
    assert (row.received.text, row.verified.text, row.replicated.text) == ("+5.0 s", "on arrival", "off<site>")
    assert (row.drilled.state, row.drilled.text) == ("bad", "failed")
    assert (row.holds, row.held_by_person) == (["by a person: x\\u202e"], True)
    read = page_models.snapshot_row(replace(full, gates=Gates(verified_ns=NOW_NS, how="x")), NOW_NS)
    assert (read.verified.text, read.drilled.state) == ("read back", "")
    damaged = page_models.snapshot_row(replace(full, record=replace(record, state=DAMAGED)), NOW_NS)
    assert (damaged.verified.state, damaged.is_damaged) == ("bad", True)


def test_a_drill_is_held_against_its_objective() -> None:
    drill = Drill(5, NOW_NS - 10**9, True, 20.0, 30.0, "")
    row = page_models.drill_row(drill, NOW_NS)
    assert (row.gate.state, row.recovery, row.objective, row.share) == ("good", "20 s", "30 s", 66.7)
    late = page_models.drill_row(replace(drill, recovery_s=40.0), NOW_NS)
    assert (late.gate.state, late.gate.text, late.share) == ("bad", "passed, too late", 100.0)
    unknown = page_models.drill_row(replace(drill, recovery_s=None, objective_s=None), NOW_NS)
    assert (unknown.gate.text, unknown.recovery, unknown.objective, unknown.share) == ("passed", "", "", 0.0)


def test_pages_of_a_timeline_follow_each_other() -> None:
    numbers = [number for number in range(1, 151) if number not in (60, 61)]  # 148 of them
    assert _pages(numbers, 0, 101) == {"newer": None, "older": 101, "total": 148}
    assert _pages(numbers, 101, 49) == {"newer": 0, "older": 49, "total": 148}
    assert _pages(numbers, 49, 1) == {"newer": 101, "older": None, "total": 148}
    assert _pages([], 0, 0) == {"newer": None, "older": None, "total": 0}
    assert _pages([7], 3, 0) == {"newer": 0, "older": None, "total": 1}, "all of the page were dropped meanwhile"


def test_an_act_of_any_kind_is_a_line() -> None:
    line = audit_line(Event("dropped", NOW_NS, {"snapshot": 4, "by": "person", "why": "a rule", "name": "a\nb"}))
    assert (line.act, line.who, line.snapshot, line.details) == ("drop", "person", 4, "“a\\u000ab”; a rule")
    dropped = Event("dropped", NOW_NS, {"snapshot": 4, "by": "person", "why": "by token 0a (ops), in the console"})
    assert audit_line(dropped).who == "token 0a (ops)"
    forged = Event("dropped", NOW_NS, {"snapshot": 4, "by": "writer", "why": "by token 0a (ops); db-1, generation 1"})
    assert audit_line(forged).who == "writer"
    facts = {"holder": "b", "note": "promoted by token 0b", "generation": 2}
    promoted = audit_line(Event("claimed", NOW_NS, {**facts, "by": "token 0a (ops)"}))
    assert (promoted.act, promoted.who) == ("promote", "token 0a (ops)")
    assert promoted.details == "holder b; promoted by token 0b; generation 2"
    claimed = audit_line(Event("claimed", NOW_NS, facts))
    assert (claimed.act, claimed.who) == ("claim", "b"), "a writer may send any note"
    command = Event("command", NOW_NS, {"command": "rollback", "by": {"uid": 0}, "arguments": ["3"]})
    assert (audit_line(command).act, audit_line(command).who) == ("rollback", "uid 0")
    later = audit_line(Event("of-a-later-version", NOW_NS, {"odd": {"x": 1}, "until_ns": NOW_NS, "took_s": 2.0}))
    assert (later.act, later.who, later.details) == (
        "of-a-later-version",
        "",
        "until 2026-11-30 00:53:20; took 2.0 s",
    )


def test_a_history_is_followed_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_volume(tmp_path, "pg", 120, NOW_NS, apart_s=60)
    path = tmp_path / "pg" / "store" / "snapshots.log"
    monkeypatch.setattr(volume_history, "ACTS", 6)
    histories = Histories(Disk())
    history = histories.of("pg", str(path))
    assert sum(bucket.snapshots for bucket in history.buckets(RANGES[1], NOW_NS / 1e9)) == 120
    assert [(drill.snapshot, drill.passed) for drill in history.drills] == [(25, True), (75, False)]
    log = SnapshotLog(str(path), Disk(), readonly=False)
    list(log.follow())
    log.append("verified", {"snapshots": [[1, 5], ["x"]], "how": "past the cache"})
    log.append("replicated", {"snapshot": 3, "target": "offsite", "complete": 3})
    log.append("damaged", {"snapshot": 4, "why": "w"})
    log.append("drilled", {"snapshot": "no number", "passed": True})
    log.close()
    assert histories.of("pg", str(path)) is history
    assert len(history.drills) == 2
    kinds = [event.kind for event in history.acts_page(0, 3)]
    assert kinds == ["drilled", "damaged", "replicated"]
    assert [event.kind for event in history.acts_page(3, 50)] == ["verified", "drilled"]
    assert (history.acts, history.acts_before) == (5, 3), "the oldest are left to `snapfs audit`"
    histories.keep(frozenset())
    assert histories.of("pg", str(path)) is not history
    histories.close()


def open_files(folder: Path) -> list[str]:
    """Files below a folder that this process has open."""
    names = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the folder itself, or closed meanwhile
            names.append(os.readlink(each))
    return [name for name in names if name.startswith(f"{folder}/")]


def test_a_log_that_was_replaced_is_read_anew_and_the_old_one_is_let_go(tmp_path: Path) -> None:
    make_volume(tmp_path, "pg", 10, NOW_NS)
    path, histories = tmp_path / "pg" / "store" / "snapshots.log", Histories(Disk())
    history = histories.of("pg", str(path))
    (tmp_path / "copy").write_bytes(path.read_bytes())
    (tmp_path / "copy").replace(path)
    assert histories.of("pg", str(path)) is not history
    assert open_files(tmp_path) == [str(path)]
    histories.close()


def test_a_line_that_was_changed_is_not_shown(tmp_path: Path) -> None:
    from snapfs.base.errors import CorruptionError

    make_volume(tmp_path, "pg", 30, NOW_NS)
    path = tmp_path / "pg" / "store" / "snapshots.log"
    history = VolumeHistory(str(path), Disk())
    history.follow()
    path.write_bytes(path.read_bytes().replace(b"db-1:/srv/pg", b"db-2:/srv/pg"))
    with pytest.raises(CorruptionError, match="wrong checksum"):
        history.acts_page(0, 10)
    history.close()


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_sessions_are_bounded_in_number_and_time() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    tokens = [Token(f"{at:08x}", "0" * 64, {"*": "read"}) for at in range(60)]
    name, session = sessions.begin(tokens[0])
    assert sessions.get(name) is session
    assert session.accepts(session.csrf)
    assert not any(session.accepts(wrong) for wrong in ("", None, session.csrf[:-1], "é"))
    clock.now_s += console_sessions.IDLE_S - 1
    assert sessions.get(name) is session
    clock.now_s += console_sessions.IDLE_S - 1
    assert sessions.get(name) is session, "it was used in between"
    clock.now_s += console_sessions.IDLE_S + 1
    assert sessions.get(name) is None
    name, _ = sessions.begin(tokens[0])
    for _ in range(int(console_sessions.LIFE_S / 1800) + 1):
        clock.now_s += 1800
        last = sessions.get(name)
    assert last is None, "however busy it was"
    own = [sessions.begin(tokens[0])[0] for _ in range(console_sessions.PER_TOKEN + 1)]
    assert (sessions.get(own[0]), len(sessions)) == (None, console_sessions.PER_TOKEN)
    for token in tokens[1:]:
        for _ in range(console_sessions.PER_TOKEN):
            sessions.begin(token)
    assert len(sessions) == console_sessions.MOST
    assert all(each not in str(sessions.__dict__) for each in own), "ids are kept as hashes"


def test_the_rate_of_wrong_tokens() -> None:
    clock = Clock()
    rate = LoginRate(clock)
    for _ in range(login_rate.BURST):
        assert rate.wait_s("a") == 0
        rate.failed("a")
    assert rate.wait_s("a") == login_rate.REGAIN_S
    assert rate.wait_s("b") == 0
    clock.now_s += login_rate.REGAIN_S
    assert rate.wait_s("a") == 0
    rate.failed("a")
    assert rate.wait_s("a") > 0
    for at in range(login_rate.ADDRESSES + 10):
        rate.failed(str(at))
    assert len(rate) == login_rate.ADDRESSES


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({"Origin": "https://m:8700"}, True), ({"Origin": "http://m:8700"}, False), ({"Origin": "https://m"}, False),
        ({"Origin": "null"}, False), ({"Origin": ""}, False), ({}, False), ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False), ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "https://evil", "Sec-Fetch-Site": "same-origin"}, False),
    ],
)  # fmt: skip
def test_a_form_comes_from_this_very_site(headers: dict[str, str], same: bool) -> None:
    assert is_same_origin(headers, "https", "m:8700") is same
