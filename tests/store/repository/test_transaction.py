"""The rules of encoding: what is stored full, what as a difference, what not at all; and reads beside the writing."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.base.blocks import BLOCK_SIZE, CHUNK_SIZE, Disk, Generation, Number, SnapshotNumber
from snapfs.base.errors import CorruptionError
from snapfs.store.objects.format import MAX_ORDINAL, NULL, Encoding, ObjectKind, Pointer
from snapfs.store.repository.repository import Encoded, Repository, SnapshotRecord, StoreIdentity, Transaction

IDENTITY = StoreIdentity("ab" * 16, 0x1234_5678_9ABC_DEF0)
FULL = (Encoding.RAW, Encoding.ZSTD)
RANDOM = random.Random(5)
NOISE = RANDOM.randbytes(4 * CHUNK_SIZE)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    yield made
    made.check_invariants()
    made.close()


def commit(transaction: Transaction, root: bytes = b"root", parent: int | None = None) -> SnapshotRecord:
    pointer = transaction.put_page(ObjectKind.ROOT, root, None)
    number = None if parent is None else SnapshotNumber(parent)
    return transaction.commit(pointer, parent=number, name=None, cut_time_ns=1, trigger="manual")


def touched(plain: bytes, block: int, data: bytes = b"changed") -> bytes:
    at = block * BLOCK_SIZE + 77
    return plain[:at] + data + plain[at + len(data) :]


def chunk(i: int = 0) -> bytes:
    return NOISE[i * CHUNK_SIZE : (i + 1) * CHUNK_SIZE]


def stored(repository: Repository, pointer: Pointer) -> tuple[int, int, Number]:
    _, row = repository.index.locate(pointer.number)
    return row.encoding, row.ordinal, row.base


def store(repository: Repository, *chunks: tuple[bytes, Pointer | None]) -> list[Pointer]:
    transaction = repository.begin(Generation(1))
    pointers = [transaction.append(transaction.encode_chunk(plain, base)) for plain, base in chunks]
    commit(transaction, os.urandom(8))
    return pointers


def test_zero_chunks_are_holes(repository: Repository) -> None:
    assert store(repository, (bytes(CHUNK_SIZE), None), (bytes(5), None), (b"", None)) == [NULL] * 3


def test_what_equals_its_base_is_not_stored_again(repository: Repository) -> None:
    (base,) = store(repository, (chunk(), None))
    assert store(repository, (chunk(), base)) == [base]


def test_equal_chunks_are_stored_once_also_within_a_transaction(repository: Repository) -> None:
    first, second = store(repository, (chunk(), None), (chunk(), None))
    assert first == second
    assert store(repository, (chunk(), None)) == [first]


def test_dedup_finds_what_an_earlier_process_stored(repository: Repository) -> None:
    (first,) = store(repository, (chunk(), None))
    repository.close()
    again = Repository.open(repository.store_dir, IDENTITY, Disk())
    assert store(again, (chunk(), None)) == [first]
    again.close()


def test_a_page_and_a_chunk_with_equal_content_are_two_objects(repository: Repository) -> None:
    transaction = repository.begin(Generation(1))
    one = transaction.append(transaction.encode_chunk(b"same", None))
    two = transaction.put_page(ObjectKind.DIR_PAGE, b"same", None)
    commit(transaction)
    assert one.number != two.number


def test_differences_are_against_the_full_object_and_end_with_the_eighth(repository: Repository) -> None:
    (full,) = store(repository, (chunk(), None))
    last, plain = full, chunk()
    for ordinal in range(1, MAX_ORDINAL + 1):
        plain = touched(plain, ordinal, b"version %d" % ordinal)
        (last,) = store(repository, (plain, last))
        assert stored(repository, last) == (Encoding.PATCH, ordinal, full.number)
        assert repository.read(last) == plain
    (last,) = store(repository, (touched(plain, 12), last))
    assert stored(repository, last)[:2] == (Encoding.RAW, 0)


def test_a_difference_of_more_than_half_is_not_worth_it(repository: Repository) -> None:
    (full,) = store(repository, (chunk(), None))
    text = b"".join(b"%d words, " % RANDOM.randrange(10**9) for _ in range(9000))[:CHUNK_SIZE]
    (words,) = store(repository, (text, None))
    for plain, base, part in ((chunk(), full, 13), (text, words, 12)):  # noise that changes is stored as blocks before
        cut = part * BLOCK_SIZE
        other = chunk(1) if base == full else text[::-1]
        (last,) = store(repository, (other[:cut] + plain[cut:], base))
        assert stored(repository, last)[0] in FULL


def test_without_resemblance_it_is_stored_full(repository: Repository) -> None:
    (full,) = store(repository, (chunk(), None))
    (last,) = store(repository, (chunk(1), full))
    assert stored(repository, last)[0] in FULL


def test_pages_are_stored_as_deltas_of_their_full_base(repository: Repository) -> None:
    page = NOISE[:6000]
    base: Pointer | None = None
    seen = []
    for i in range(MAX_ORDINAL + 2):
        page = page[: 100 * i] + b"row %d" % i + page[100 * i :]
        transaction = repository.begin(Generation(1))
        base = transaction.put_page(ObjectKind.DIR_PAGE, page, base)
        assert transaction.read(base) == page
        commit(transaction)
        seen.append(stored(repository, base)[:2])
    assert seen == [
        (Encoding.RAW, 0), *((Encoding.DELTA, i) for i in range(1, MAX_ORDINAL + 1)), (Encoding.RAW, 0)
    ]  # fmt: skip


def test_moved_content_is_found_in_the_neighbours_of_the_base(repository: Repository) -> None:
    before, base, after = store(repository, *((chunk(i), None) for i in range(3)))
    plain = NOISE[CHUNK_SIZE + 5000 : 2 * CHUNK_SIZE + 5000]
    transaction = repository.begin(Generation(1))
    encoded = transaction.encode_chunk(plain, base, before, after)
    assert len(encoded.payload) < 200
    moved = transaction.append(encoded)
    commit(transaction)
    assert stored(repository, moved) == (Encoding.SHIFT, 1, base.number)
    assert repository.read(moved) == plain
    assert set(repository.objects.bases_of(moved.number)) == {before.number, base.number, after.number}
    (next_one,) = store(repository, (touched(plain, 3), moved))
    assert repository.read(next_one) == touched(plain, 3)


def test_a_base_of_this_very_transaction_will_do(repository: Repository) -> None:
    transaction = repository.begin(Generation(1))
    base = transaction.append(transaction.encode_chunk(chunk(), None))
    encoded = transaction.encode_chunk(touched(chunk(), 4), base)
    assert encoded.is_difference
    pointer = transaction.append(encoded)
    assert transaction.read(pointer) == touched(chunk(), 4)
    commit(transaction)
    assert repository.read(pointer) == touched(chunk(), 4)


def test_a_damaged_base_does_not_keep_a_new_version_from_being_stored(repository: Repository) -> None:
    (base,) = store(repository, (chunk(), None))
    repository.close()
    path = Path(repository.index.segments()[0].path)
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 1
    path.write_bytes(bytes(damaged))
    again = Repository.open(repository.store_dir, IDENTITY, Disk())
    with pytest.raises(CorruptionError, match="wrong checksum"):
        again.read(base)
    (last,) = store(again, (touched(chunk(), 1), base))
    assert again.read(last) == touched(chunk(), 1)
    again.close()


VERSIONS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.integers(0, CHUNK_SIZE - 1), st.binary(min_size=1, max_size=5000)),
        st.tuples(st.just("new"), st.integers(0, 3), st.just(b"")),
        st.tuples(st.just("cut"), st.integers(1, CHUNK_SIZE), st.just(b"")),
        st.tuples(st.just("grow"), st.just(0), st.binary(min_size=1, max_size=9000)),
        st.tuples(st.just("zero"), st.integers(1, CHUNK_SIZE), st.just(b"")),
    ),
    max_size=14,
)


def next_version(plain: bytes, what: str, at: int, data: bytes) -> bytes:
    if what == "edit":
        at = at % (len(plain) or 1)
        return (plain[:at] + data + plain[at + len(data) :])[:CHUNK_SIZE]
    return {"new": chunk(at), "cut": plain[:at], "grow": (plain + data)[:CHUNK_SIZE], "zero": bytes(at)}[what]


@given(VERSIONS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_versions_of_a_chunk_read_back_in_this_process_and_the_next(
    tmp_path_factory: pytest.TempPathFactory, versions: list[tuple[str, int, bytes]]
) -> None:
    repository = Repository.create(str(tmp_path_factory.mktemp("versions") / "store"), IDENTITY, Disk())
    plain, pointer, wanted = chunk(), NULL, []
    for version in versions:
        (pointer,) = store(repository, (plain, pointer))
        wanted.append((pointer, plain))
        plain = next_version(plain, *version)
    assert all(repository.read(pointer) == plain for pointer, plain in wanted if pointer != NULL)
    repository.close()
    again = Repository.open(repository.store_dir, IDENTITY, Disk(), cache_bytes=0)
    assert all(again.read(pointer) == plain for pointer, plain in wanted if pointer != NULL)
    for pointer, _ in wanted:
        if pointer != NULL:
            assert all(
                stored(again, Pointer(base, b""))[0] in FULL for base in again.objects.bases_of(pointer.number) if base
            )
    again.close()


def test_threads_encode_and_read_while_one_appends(repository: Repository) -> None:
    """Four encoders, one appender, and readers of what was just appended."""
    count, lock, failures = 120, threading.Lock(), []
    base = store(repository, *((chunk(i), None) for i in range(4)))
    transaction = repository.begin(Generation(1))
    made: dict[int, tuple[Pointer, bytes]] = {}
    work = iter(range(count))

    def encode() -> None:
        source = random.Random(threading.get_ident())
        try:
            for i in work:
                plain = touched(chunk(i % 4), i % 16, b"thread %d" % i)
                encoded = transaction.encode_chunk(plain, base[i % 4] if i % 3 else None)
                with lock:
                    made[i] = transaction.append(encoded), plain
                pointer, wanted = made[source.choice(list(made))]
                assert transaction.read(pointer) == wanted
        except BaseException as error:
            failures.append(error)

    class Locked:
        def __init__(self, inner: Iterator[int]) -> None:
            self.inner = inner

        def __iter__(self) -> Locked:
            return self

        def __next__(self) -> int:
            with lock:
                return next(self.inner)

    work = Locked(work)
    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    commit(transaction)
    assert len(made) == count
    assert all(repository.read(pointer) == plain for pointer, plain in made.values())


def test_the_caches_stay_within_their_bytes(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "store"), IDENTITY, Disk())
    repository.close()
    repository = Repository.open(repository.store_dir, IDENTITY, Disk(), cache_bytes=10 * CHUNK_SIZE)
    pointers = store(repository, *((os.urandom(CHUNK_SIZE), None) for _ in range(40)))
    for pointer in pointers:
        repository.read(pointer)
    repository.check_invariants()
    repository.close()


def test_an_encoded_object_is_cheap_to_describe() -> None:
    assert not hasattr(Encoded(NULL), "__dict__")


def test_a_chunk_that_was_filled_up_keeps_its_first_part_as_its_base(repository: Repository) -> None:
    begun, filled = chunk()[: CHUNK_SIZE // 4] + bytes(3 * CHUNK_SIZE // 4), chunk()
    (base,) = store(repository, (begun, None))
    (growing,) = store(repository, (filled[:-BLOCK_SIZE] + bytes(BLOCK_SIZE), base))
    (last,) = store(repository, (filled, base))
    for pointer in (growing, last):  # noise: what is new is one object, and the rest stays where it is
        assert stored(repository, pointer) == (Encoding.MOSAIC, MAX_ORDINAL, base.number)
    assert len(repository.objects.bases_of(last.number)) == 2
    assert repository.read(last) == filled


def test_what_is_alike_is_chosen_only_where_it_pays(repository: Repository) -> None:
    text = b"".join(b"%d words of a log, " % RANDOM.randrange(10**9) for _ in range(4000))
    (model, noise) = store(repository, (text[: CHUNK_SIZE // 2] + chunk()[: CHUNK_SIZE // 2], None), (chunk(1), None))
    transaction = repository.begin(Generation(1))
    pays, not_at_all = transaction.similarity(model, careful=False), transaction.similarity(noise, careful=False)
    assert transaction.best_dictionary([noise, model]) == model, "what does not compress is no model of anything"
    assert transaction.best_dictionary([noise]) == NULL
    similar = transaction.encode_chunk(text[:CHUNK_SIZE], None, similar=pays)
    assert (similar.is_difference, similar.is_next_version, similar.base) == (True, False, model.number)
    assert transaction.read(transaction.append(similar)) == text[:CHUNK_SIZE]
    assert not transaction.encode_chunk(text[-CHUNK_SIZE:], None, similar=not_at_all).is_difference
    assert not transaction.encode_chunk(text[: CHUNK_SIZE // 2], None, similar=pays).is_difference, "it may still grow"
    transaction.abort()
