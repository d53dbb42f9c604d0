"""Objects that come from elsewhere: in whatever order, in whatever pieces; a snapshot whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.store.ingest.receiver import Receiver
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import FRAME_BYTES, Encoding
from snapfs.store.objects.publisher import Publisher
from snapfs.store.objects.staging import SUFFIX
from snapfs.store.protocol import number_runs, object_stream, refusals
from snapfs.store.protocol.messages import PartReceipt
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.repair.damage_report import bases_of
from snapfs.store.repair.liveness import live_numbers
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from tests.fakes.histories.history import IDENTITY, History

GENERATION = Generation(9)


def open_fence() -> None:
    """No writer is fenced."""


class Mirror:
    def __init__(self, store_dir: Path) -> None:
        self.store_dir = store_dir
        self.repository = Repository.create(str(store_dir), IDENTITY, Disk())
        self.receiver = Receiver(self.repository, Disk(), cache_bytes=1 << 20)

    def reopen(self) -> None:
        self.close()
        self.repository = Repository.open(str(self.store_dir), IDENTITY, Disk())
        self.receiver = Receiver(self.repository, Disk(), cache_bytes=1 << 20)

    def close(self) -> None:
        self.receiver.close()
        self.repository.close()

    def put(self, data: bytes, step: int = 1 << 16) -> PartReceipt:
        part = self.receiver.part(GENERATION, open_fence)
        try:
            for at in range(0, len(data), step):
                part.feed(data[at : at + step])
            return part.finish()
        finally:
            part.abort()

    def commit(self, history: History, *numbers: int, old: bool = False) -> list[int]:
        records = [record for record in history.records if record.number in numbers]
        return [r.number for r in self.receiver.commit(records, history=old, fence=open_fence)]

    def check(self, history: History, *numbers: int) -> None:
        self.receiver.check_invariants()
        assert [record.number for record in self.repository.snapshots()] == list(numbers)
        for number in numbers:
            history.assert_equal(self.repository, number)
        report = verify(self.repository, self.repository.snapshots())
        assert report.is_good, report


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "source", 5)
    made.scatter()
    made.grow(6)
    yield made
    made.close()


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    made = Mirror(tmp_path / "mirror")
    yield made
    made.close()


def test_a_history_in_order(history: History, mirror: Mirror) -> None:
    sent = number_runs.runs_of([])
    for record in history.records:
        numbers = history.numbers(record)
        sent = mirror.receiver.lacks(list(number_runs.runs_of(numbers)))
        lacking = [Number(number) for first, last in sent for number in range(first, last + 1)]
        receipt = mirror.put(history.part(lacking))
        assert (receipt.objects, receipt.known, receipt.unverified) == (len(lacking), 0, 0)
        assert mirror.commit(history, record.number) == [record.number]
        assert not mirror.receiver.staging.parts()
    mirror.check(history, 1, 2, 3, 4, 5, 6)
    mirror.reopen()
    mirror.check(history, 1, 2, 3, 4, 5, 6)
    assert mirror.commit(history, 1, 2, 3, 4, 5, 6) == [], "a second time it is there"


def test_the_newest_first_and_then_its_history(history: History, mirror: Mirror) -> None:
    """Segments of the newest snapshot are full of gaps, into which the history goes."""
    mirror.put(history.part(history.numbers(history.records[0])))
    mirror.commit(history, 1)
    mirror.put(history.part(history.numbers(history.records[-1])))
    assert mirror.commit(history, 6) == [6]
    mirror.check(history, 1, 6)
    for number in (5, 3):
        mirror.put(history.part(history.numbers(history.records[number - 1])))
        with pytest.raises(RefusedError) as caught:
            mirror.commit(history, number)
        assert caught.value.refusal == Refusal.BAD_REQUEST, "out of order, and not declared as history"
        assert mirror.commit(history, number, old=True) == [number]
    mirror.check(history, 1, 3, 5, 6)
    mirror.reopen()
    mirror.check(history, 1, 3, 5, 6)


@pytest.mark.parametrize("seed", range(8))
def test_parts_in_any_order_twice_and_overlapping(history: History, mirror: Mirror, seed: int) -> None:
    rng = random.Random(seed)
    numbers = list(history.numbers(*history.records))
    parts = history.parts(numbers, rng.choice([1, 3, 20, 200]))
    parts += [history.part(sorted(rng.sample(numbers, min(len(numbers), 30)))) for _ in range(5)]
    rng.shuffle(parts)
    for at, part in enumerate(parts):
        mirror.put(part, rng.choice([100, 5000, 1 << 20]))
        if at == len(parts) // 2 and seed % 2:
            mirror.reopen()
    assert not list(mirror.receiver.lacks(list(number_runs.runs_of(numbers))))
    assert mirror.commit(history, 2, 4, 6) == [2, 4, 6]
    mirror.check(history, 2, 4, 6)
    assert mirror.commit(history, 1, 3, 5, old=True) == [1, 3, 5]
    mirror.check(history, 1, 2, 3, 4, 5, 6)
    mirror.receiver.forget_stale(3600)
    assert not mirror.receiver.staging.parts(), "nothing in them was new"


def test_a_snapshot_that_lacks_anything_is_refused(history: History, mirror: Mirror) -> None:
    record = history.records[-1]
    numbers = list(history.numbers(record))
    for left_out in random.Random(1).sample(numbers, 15):
        part = history.part(number for number in numbers if number != left_out)
        mirror.put(part)
        with pytest.raises(RefusedError) as caught:
            mirror.commit(history, record.number)
        assert caught.value.refusal == Refusal.INCOMPLETE
        assert left_out in caught.value.problem.missing
        assert not mirror.repository.snapshots()
        for path in (mirror.store_dir / "segments").iterdir():
            pytest.fail(f"{path} was published")
        mirror.receiver.forget_stale(-1)
        mirror.receiver.objects.forget_from(Number(0))
    mirror.put(history.part(numbers))
    assert mirror.commit(history, record.number) == [record.number]


def test_what_was_refused_can_be_completed(history: History, mirror: Mirror) -> None:
    numbers = list(history.numbers(history.records[-1]))
    mirror.put(history.part(numbers[::2]))
    with pytest.raises(RefusedError):
        mirror.commit(history, 6)
    mirror.put(history.part(numbers[1::2]))
    assert mirror.commit(history, 6) == [6]
    mirror.check(history, 6)


def test_objects_that_are_not_what_they_say(history: History, mirror: Mirror) -> None:
    """Every object with another content, under a right checksum, is found out, on arrival or by the commit."""
    numbers = list(history.numbers(history.records[-1]))
    for bad in random.Random(2).sample(numbers, len(numbers)):
        source, row = history.repository.index.locate(bad)
        framed = source.frame(row)
        frame = fmt.unpack_frame(framed)
        payload = bytearray(framed[FRAME_BYTES:])
        payload[-1] ^= 1
        forged = fmt.pack_frame(bad, frame.base, frame.kind, frame.encoding, frame.ordinal, frame.plain, bytes(payload))
        item = object_stream.item_bytes(row, forged + bytes(payload))
        data = object_stream.stream_header() + item + object_stream.stream_end(1)
        if row.encoding <= Encoding.ZSTD or all(map(mirror.receiver.union.row, bases_of(history.repository, row))):
            with pytest.raises(RefusedError) as caught:
                mirror.put(data)
            assert (caught.value.refusal, caught.value.problem.number) == (Refusal.CORRUPT, bad)
            continue
        receipt = mirror.put(data)
        assert receipt.unverified == 1, "only what has no base yet is taken unseen"
        mirror.put(history.part(numbers))
        with pytest.raises(RefusedError) as caught:
            mirror.commit(history, 6)
        assert caught.value.refusal in (Refusal.CORRUPT, Refusal.INCOMPLETE)
        assert not mirror.repository.snapshots()
        assert mirror.put(history.part(numbers)).objects == 1, "the forged one is requested again"
        assert mirror.commit(history, 6) == [6]
        mirror.check(history, 6)
        break
    else:
        pytest.fail("no difference was tried before its base")


def test_what_could_not_be_decoded_is_decoded_later_though_a_commit_failed_between(
    history: History, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart it is not known which differences of a part were decoded: a commit finds it out."""
    first = history.numbers(history.records[0])
    rows = [history.repository.index.locate(number)[1] for number in history.numbers(*history.records)]
    early = next(row for row in rows if row.base and row.number not in first and row.base not in first)
    receipt = mirror.put(history.part([*first, early.number]))
    assert receipt.unverified == 1
    mirror.reopen()

    def fails(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "publish", fails)
        with pytest.raises(OSError, match="no space"):
            mirror.commit(history, 1)
    (part,) = mirror.receiver.staging.parts()
    assert part.is_unverified(early)
    assert mirror.commit(history, 1) == [1]


def test_another_history_is_refused(history: History, mirror: Mirror, tmp_path: Path) -> None:
    mirror.put(history.part(history.numbers(*history.records)))
    mirror.commit(history, 6)
    other = History(tmp_path / "other", 6)
    other.grow(6)
    with pytest.raises(RefusedError) as caught:
        mirror.put(other.part(other.numbers(*other.records)))
    assert caught.value.refusal == Refusal.DIVERGED
    with pytest.raises(RefusedError) as caught:
        mirror.commit(other, 6)
    assert (caught.value.refusal, caught.value.problem.snapshot) == (Refusal.DIVERGED, 6)
    other.close()
    mirror.check(history, 6)


def test_staged_objects_of_numbers_that_came_to_nothing_give_way(
    history: History, mirror: Mirror, tmp_path: Path
) -> None:
    other = History(tmp_path / "other", 6)
    other.grow(3)
    mirror.put(other.part(other.numbers(*other.records)))
    other.close()
    mirror.put(history.part(history.numbers(*history.records)))
    assert mirror.commit(history, 1, 2, 3, 4, 5, 6) == [1, 2, 3, 4, 5, 6]
    mirror.check(history, 1, 2, 3, 4, 5, 6)


def test_a_part_that_breaks_off_keeps_what_came(history: History, mirror: Mirror) -> None:
    numbers = list(history.numbers(history.records[-1]))
    data = history.part(numbers)
    receipt = mirror.put(data[: len(data) // 2])
    assert 0 < receipt.objects < len(numbers)
    lacking = [
        n for first, last in mirror.receiver.lacks(list(number_runs.runs_of(numbers))) for n in range(first, last + 1)
    ]
    assert lacking == numbers[receipt.objects :]
    again = mirror.put(data)
    assert (again.known, again.objects) == (receipt.objects, len(lacking))
    assert mirror.commit(history, 6) == [6]


def test_who_was_fenced_meanwhile_leaves_nothing(history: History, mirror: Mirror) -> None:
    fenced = False

    def fence() -> None:
        if fenced:
            raise refusals.refuse(Refusal.FENCED, "generation 10 has taken over")

    part = mirror.receiver.part(GENERATION, fence)
    part.feed(history.part(history.numbers(*history.records)))
    fenced = True
    with pytest.raises(RefusedError):
        part.finish()
    part.abort()
    assert not list((mirror.store_dir / "incoming").iterdir())
    mirror.put(history.part(history.numbers(*history.records)))
    before = (mirror.store_dir / "snapshots.log").read_bytes()
    with pytest.raises(RefusedError):
        mirror.receiver.commit(history.records, history=False, fence=fence)
    assert (mirror.store_dir / "snapshots.log").read_bytes() == before
    assert not list((mirror.store_dir / "segments").iterdir())


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda items: [items[1], items[0]], Refusal.BAD_REQUEST),
        (lambda items: [items[0], items[0]], Refusal.BAD_REQUEST),
        (lambda items: [object_stream.absent_item(Number(77), "no")], Refusal.BAD_REQUEST),
    ],
)
def test_streams_that_are_no_part(history: History, mirror: Mirror, change: object, refusal: Refusal) -> None:
    assert callable(change)
    items = change(list(history.items(list(history.numbers(history.records[0]))[:2])))
    with pytest.raises(RefusedError) as caught:
        mirror.put(object_stream.stream_header() + b"".join(items))
    assert caught.value.refusal == refusal


def test_objects_of_a_generation_that_nobody_has_claimed(history: History, mirror: Mirror) -> None:
    history.grow(1, generation=10)
    newest = [number for number in history.numbers(history.records[-1]) if fmt.generation_of(number) == 10]
    with pytest.raises(RefusedError) as caught:
        mirror.put(history.part(newest))
    assert caught.value.refusal == Refusal.BAD_REQUEST


def test_a_failover_is_followed(history: History, mirror: Mirror) -> None:
    mirror.put(history.part(history.numbers(*history.records)))
    mirror.commit(history, 1, 2, 3, 4, 5, 6)
    history.grow(3, generation=4)
    for part in history.parts(history.numbers(*history.records), 50):
        mirror.put(part)
    mirror.commit(history, 7, 8, 9)
    mirror.reopen()
    mirror.check(history, *range(1, 10))


def test_what_the_mirror_dropped_is_found_lacking_and_comes_again(history: History, mirror: Mirror) -> None:
    """A mirror's own retention: a snapshot may need what only dropped ones had."""
    mirror.put(history.part(history.numbers(*history.records)))
    mirror.commit(history, 1, 2, 3, 4, 5, 6)
    for number in (1, 2, 3, 4, 5):
        mirror.repository.drop(mirror.repository.find(str(number)).number)
    with mirror.repository.collection() as collection:
        collection.run(live_numbers(mirror.repository, mirror.repository.snapshots()), min_dead=0.0)
    mirror.receiver.whole = history.numbers()  # forgotten with them
    mirror.check(history, 6)
    with pytest.raises(RefusedError) as caught:
        mirror.commit(history, 2, old=True)
    assert caught.value.refusal == Refusal.INCOMPLETE
    numbers = history.numbers(history.records[1])
    lacking = [
        Number(number)
        for first, last in mirror.receiver.lacks(list(number_runs.runs_of(numbers)))
        for number in range(first, last + 1)
    ]
    assert 0 < len(lacking) < len(numbers), "what snapshot 6 shares with it is there"
    mirror.put(history.part(lacking))
    mirror.commit(history, 2, old=True)
    mirror.check(history, 2, 6)


def test_a_damaged_page_comes_again(history: History, mirror: Mirror) -> None:
    record = history.records[-1]
    mirror.put(history.part(history.numbers(record)))
    mirror.commit(history, 6)
    info = mirror.repository.index.find(record.root.number)
    row = mirror.repository.index.peek(record.root.number)
    assert info is not None
    assert row is not None
    data = bytearray(Path(info.path).read_bytes())
    data[row.offset + FRAME_BYTES] ^= 1
    Path(info.path).write_bytes(data)
    mirror.reopen()
    history.grow(1)
    newest = history.numbers(history.records[-1])
    mirror.put(history.part(newest))
    again = record.root.number
    assert mirror.receiver.mark_suspect(again) == [again]
    assert (again, again) in list(mirror.receiver.lacks([(again, again)]))
    mirror.put(history.part([again]))
    mirror.commit(history, 7)
    if again in newest:
        mirror.check(history, 6, 7)
    assert not mirror.receiver.union.suspects


def test_a_part_that_the_disk_damaged_is_asked_for_again(history: History, mirror: Mirror) -> None:
    numbers = history.numbers(*history.records)
    mirror.put(history.part(numbers))
    (path,) = (mirror.store_dir / "incoming").iterdir()
    assert path.suffix == SUFFIX
    path.write_bytes(path.read_bytes()[:-30])
    mirror.reopen()
    assert mirror.receiver.staging.removed
    assert sum(last - first + 1 for first, last in mirror.receiver.lacks(list(number_runs.runs_of(numbers)))) == len(
        numbers
    )


def test_differences_were_among_what_was_tried(history: History) -> None:
    """Else the stories above would not cover bases."""
    encodings = [history.repository.index.locate(number)[1].encoding for number in history.numbers(*history.records)]
    assert sum(encoding > Encoding.ZSTD for encoding in encodings) > 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 1 << 30), max_size=4), noise=st.binary(max_size=40))
def test_whatever_is_sent_is_refused_or_sound(
    history: History, mirror: Mirror, seed: int, cuts: list[int], noise: bytes
) -> None:
    """A part with bytes changed, left out or put in at any places, in any steps."""
    rng = random.Random(seed)
    numbers = list(history.numbers(*history.records))
    data = bytearray(history.part(sorted(rng.sample(numbers, rng.randrange(1, 9)))))
    for cut in cuts:
        at = cut % (len(data) + 1)
        data[at : at + rng.choice([0, 1, 8])] = noise[: rng.choice([0, 1, 8, 40])]
    part = mirror.receiver.part(GENERATION, open_fence)
    with contextlib.suppress(RefusedError):
        for at in range(0, len(data), step := rng.choice([1, 50, 1 << 20])):
            part.feed(bytes(data[at : at + step]))
    receipt = part.finish()
    assert receipt.objects <= 9
    mirror.receiver.check_invariants()
    for staged in mirror.receiver.staging.parts():
        for reader, row in mirror.receiver.staging.rows(staged):
            if staged.is_unverified(row):
                continue  # its content hash is looked at when its base is there
            framed = history.repository.index.locate(row.number)
            assert row.content_hash == framed[1].content_hash, "nothing but what the source has comes through"
            assert reader.frame(row) == framed[0].frame(framed[1])
    assert not mirror.repository.snapshots()
