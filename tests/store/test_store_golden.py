"""Files written by format version 1 are read for ever; and what is written today has the same layout."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
import xxhash

from snapfs.blocks import Disk, Generation, Number
from snapfs.store import format as fmt
from snapfs.store.format import Encoding, Header, Kind, Pointer
from snapfs.store.repository import Repository
from snapfs.store.segment import SegmentReader, SegmentWriter
from tests.golden.make_store_v1 import IDENTITY, contents, make

GOLDEN = Path(__file__).parent.parent / "golden" / "store-v1"


@pytest.fixture
def store_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "store"))


def proof(plain: bytes) -> bytes:
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
    by_proof = {}
    for info in repository.index.segments():
        reader = repository.index.reader(info.first)
        assert reader is not None
        by_proof |= {row.proof: row for row in reader.rows()}
    for index, changes in enumerate(contents()):
        for _, plain in [*changes, ("root", b"root %d" % index)]:
            assert repository.read(Pointer(by_proof[proof(plain)].number, proof(plain))) == plain
    assert {row.encoding for row in by_proof.values()} == set(Encoding) - {Encoding.SEALED}
    repository.close()


def test_a_golden_store_can_be_written_on(store_dir: Path) -> None:
    repository = Repository.open(str(store_dir), IDENTITY, Disk())
    transaction = repository.begin(Generation(2))
    root = transaction.put_page(Kind.ROOT, b"later", None)
    transaction.commit(root, parent=None, name=None, cut_time_ns=1, trigger="manual")
    repository.close()
    again = Repository.open(str(store_dir), IDENTITY, Disk(), readonly=True)
    assert again.snapshots()[-1].number == 4
    again.close()


def test_what_is_stored_today_is_what_was_stored_then(tmp_path: Path) -> None:
    """Numbers, kinds, encodings and proofs; not the compressed bytes, which depend on the version of zstd."""
    make(str(tmp_path / "store"))
    for golden in sorted((GOLDEN / "segments").iterdir()):
        then = SegmentReader(str(golden))
        now = SegmentReader(str(tmp_path / "store" / "segments" / golden.name))
        facts = [[(row.number, row.kind, row.encoding, row.ordinal, row.base, row.proof) for row in reader.rows()][:-1]
                 for reader in (then, now)]  # fmt: skip
        assert facts[0] == facts[1]


def test_a_segment_of_given_payloads_is_the_same_to_the_byte(tmp_path: Path) -> None:
    first = fmt.make_number(Generation(7), 1000)
    writer = SegmentWriter(str(tmp_path), Disk(), Header(IDENTITY.volume_id, Generation(7), first))
    for i in range(5):
        plain = b"payload %d " % i * (i + 1)
        writer.append(Number(first + i), Kind(i), Encoding.RAW, 0, Number(0), proof(plain), len(plain), plain)
    writer.append(Number(first + 5), Kind.CHUNK, Encoding.PATCH, 3, first, proof(b"x"), 20, b"\0\0")
    writer.finish()
    writer.close()
    written = Path(writer.path).read_bytes()
    assert hashlib.sha256(written).hexdigest() == "69eb7c20016c780f8fa8b64a5ad45b587ff4870f50dae50b8c5281b6f043b13c"
