"""Files of every format version are read for ever; and what is written today has the layout of the newest."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import xxhash

from snapfs.base.blocks import Disk, Generation, Number
from snapfs.base.errors import VersionError
from snapfs.store.objects import format as fmt
from snapfs.store.objects.format import Encoding, Header, ObjectKind, Pointer
from snapfs.store.objects.segment_reader import SegmentReader
from snapfs.store.objects.segment_writer import SegmentWriter
from snapfs.store.repository.repository import Repository
from tests.golden.make_store_v1 import IDENTITY, contents, make
from tests.golden.make_store_v2 import VERSIONS
from tests.golden.make_store_v2 import contents as versions_of_2

GOLDEN = Path(__file__).parent.parent / "golden" / "store-v1"
GOLDEN_2 = GOLDEN.parent / "store-v2"


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def content_hash(plain: bytes) -> bytes:
    return xxhash.xxh3_128_digest(plain, IDENTITY.seed)


def test_everything_in_the_golden_store_is_read(store_dir: Path) -> None:
    repository = Repository.open(str(store_dir), IDENTITY, Disk())
    assert repository.recovered == []
    assert [(record.number, record.name, record.generation, record.parent) for record in repository.snapshots()] == [
        (1, "golden-0", 1, None),
        (3, "golden-2", 2, 2),
    ]
    assert [event.kind for event in repository.events()] == [
        "created", "snapshot", "snapshot", "snapshot", "mounted", "dropped"
    ]  # fmt: skip
    by_content_hash = {}
    for info in repository.index.segments():
        reader = repository.index.reader(info.first)
        assert reader is not None
        by_content_hash |= {row.content_hash: row for row in reader.rows()}
    for index, changes in enumerate(contents()):
        for _, plain in [*changes, ("root", b"root %d" % index)]:
            assert repository.read(Pointer(by_content_hash[content_hash(plain)].number, content_hash(plain))) == plain
    assert {row.encoding for row in by_content_hash.values()} == set(Encoding) - {Encoding.ENCRYPTED, Encoding.MOSAIC}
    repository.close()


def test_chunks_that_were_written_at_random_are_read_from_the_golden_store_of_version_2(tmp_path: Path) -> None:
    """An object of a new kind is a version of what writes it."""
    repository = Repository.open(str(shutil.copytree(GOLDEN_2, tmp_path / "store")), IDENTITY, Disk())
    by_content_hash = {}
    for info in repository.index.segments():
        reader = repository.index.reader(info.first)
        assert reader is not None
        by_content_hash |= {row.content_hash: row for row in reader.rows()}
    for plain in versions_of_2():
        assert repository.read(Pointer(by_content_hash[content_hash(plain)].number, content_hash(plain))) == plain
    encodings = [by_content_hash[content_hash(plain)].encoding for plain in versions_of_2()]
    assert encodings == [Encoding.RAW, *[Encoding.MOSAIC] * (VERSIONS - 1)]
    repository.close()


def test_a_segment_of_a_later_version_is_refused(store_dir: Path) -> None:
    path = next((store_dir / "segments").iterdir())
    data = bytearray(path.read_bytes())
    later = fmt.SEGMENT_VERSION + 1
    for at, size in ((0, fmt.HEADER_BYTES), (len(data) - fmt.TRAILER_BYTES, fmt.TRAILER_BYTES)):
        data[at + 8 : at + 10] = later.to_bytes(2, "little")
        data[at + size - 8 : at + size] = xxhash.xxh3_64_intdigest(data[at : at + size - 8]).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(VersionError, match="use a newer snapfs"):
        Repository.open(str(store_dir), IDENTITY, Disk()).close()


def test_a_golden_store_can_be_written_on(store_dir: Path) -> None:
    repository = Repository.open(str(store_dir), IDENTITY, Disk())
    transaction = repository.begin(Generation(2))
    root = transaction.put_page(ObjectKind.ROOT, b"later", None)
    transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")
    repository.close()
    again = Repository.open(str(store_dir), IDENTITY, Disk(), readonly=True)
    assert again.snapshots()[-1].number == 4
    again.close()


def test_what_is_stored_today_is_what_was_stored_then(tmp_path: Path) -> None:
    """Numbers, kinds, encodings and content hashes; not the compressed bytes, which depend on the version of zstd."""
    make(str(tmp_path / "store"))
    for golden in sorted((GOLDEN / "segments").iterdir()):
        then = SegmentReader(str(golden))
        now = SegmentReader(str(tmp_path / "store" / "segments" / golden.name))
        facts = [[(row.number, row.kind, row.encoding, row.ordinal, row.base, row.content_hash) for row in
        reader.rows()][:-1]
                 for reader in (then, now)]  # fmt: skip
        assert facts[0] == facts[1]


def test_a_segment_of_given_payloads_is_the_same_to_the_byte(tmp_path: Path) -> None:
    first = fmt.make_number(Generation(7), 1000)
    writer = SegmentWriter(str(tmp_path), Disk(), Header(IDENTITY.volume_id, Generation(7), first))
    for i in range(5):
        plain = b"payload %d " % i * (i + 1)
        writer.append(
            Number(first + i), ObjectKind(i), Encoding.RAW, 0, Number(0), content_hash(plain), len(plain), plain
        )
    writer.append(Number(first + 5), ObjectKind.CHUNK, Encoding.PATCH, 3, first, content_hash(b"x"), 20, b"\0\0")
    writer.finish()
    writer.close()
    written = Path(writer.path).read_bytes()
    assert hashlib.sha256(written).hexdigest() == "c4dc2674c549e2f940b7f58acfa97cd42a809339ed554aacdddc3ddcccd28a9c"
