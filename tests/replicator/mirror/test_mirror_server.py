"""A mirror as a process, over real sockets: what each operation answers, what it refuses, what it outlives."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from replicator.mirror.mirror_server import RequestRate, ServerOptions
from replicator.mirror.tokens import Tokens
from replicator.targets.mirror_target import HttpTarget
from snapfs.base.blocks import Disk
from snapfs.base.mirror_access import MirrorAccess
from snapfs.store.objects.format import FRAME_BYTES, Encoding, ObjectKind
from snapfs.store.objects.number_set import NumberSet
from snapfs.store.objects.payload_types import Bases
from snapfs.store.protocol import hot_codec, message_codec, messages, number_runs, object_stream, read_objects, wire
from snapfs.store.protocol.refusals import Refusal, RefusedError
from snapfs.store.repair.verify import verify
from snapfs.store.repository.repository import Repository
from snapfs.store.tables.snapshot import SnapshotTree
from tests.conftest import run_snapfs
from tests.fakes.histories.history import IDENTITY, History
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.targets.mirror_process import CREATE, REPLICATOR, Client, MirrorProcess


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    made = History(tmp_path_factory.mktemp("source") / "store", 3)
    made.grow(5)
    made.part(made.numbers(*made.records))
    yield made
    made.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[MirrorProcess]:
    made = MirrorProcess(tmp_path / "root", "--upkeep", "0.2")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(process: MirrorProcess) -> Client:
    made = process.client()
    made.create()
    made.claim(1)
    return made


def check_store(process: MirrorProcess, history: History, *numbers: int) -> None:
    """What is on the mirror's disk, as the store's own verification sees it, while it is served."""
    repository = Repository.open(str(process.root / "pg" / "store"), IDENTITY, Disk(), readonly=True)
    try:
        assert [record.number for record in repository.snapshots()] == list(numbers)
        for number in numbers:
            history.assert_equal(repository, number)
        assert verify(repository, repository.snapshots()).is_good
    finally:
        repository.close()


def refused(refusal: Refusal) -> pytest.RaisesExc[RefusedError]:
    return pytest.raises(RefusedError, check=lambda error: error.refusal is refusal)


def push(client: Client, history: History, *numbers: int, history_too: bool = False) -> messages.CommitReceipt:
    records = [record for record in history.records if record.number in numbers]
    lacking = client.lacks(history.numbers(*records))
    for part in history.parts(lacking, 40):  # type: ignore[arg-type]
        client.put(part)
    return client.commit(records, history=history_too)


def test_a_push_and_a_restart(process: MirrorProcess, client: Client, history: History) -> None:
    receipt = push(client, history, 1, 2)
    assert (receipt.committed, receipt.newest) == ([1, 2], 2)
    push(client, history, 5)
    before = client.snapshots()
    assert [snapshot.decoded() for snapshot in before.snapshots] == [history.records[at] for at in (0, 1, 4)]
    check_store(process, history, 1, 2, 5)
    process.kill()
    process.start()
    assert client.snapshots() == before, "the revision too"
    assert push(client, history, 3, 4, history_too=True).committed == [3, 4]
    assert push(client, history, 3, 4, history_too=True).committed == []
    assert process.stop() == 0
    check_store(process, history, 1, 2, 3, 4, 5)


def test_snapfs_itself_reads_a_mirrors_folder(process: MirrorProcess, client: Client, history: History) -> None:
    push(client, history, 1, 2, 3)
    assert "3" in run_snapfs("list", process.root / "pg").stdout
    process.stop()
    assert run_snapfs("verify", process.root / "pg").returncode == 0
    assert "3" in run_snapfs("show", process.root / "pg", "3").stdout


def test_killed_at_random_in_mid_push(process: MirrorProcess, client: Client, history: History) -> None:
    """A pusher that does not give up, and a mirror that is killed again and again."""
    rng = random.Random(4)
    stopping = threading.Event()

    def killer() -> None:
        while not stopping.wait(rng.uniform(0.02, 0.15)):
            process.kill()
            process.start()

    thread = threading.Thread(target=killer)
    thread.start()
    deaths = 0
    try:
        for record in history.records:
            while True:
                try:
                    lacking = client.lacks(history.numbers(record))
                    parts = history.parts(lacking, 2)  # type: ignore[arg-type]
                    rng.shuffle(parts)
                    for part in parts:
                        client.put(part)
                    client.commit([record])
                    break
                except OSError:
                    deaths += 1
                    time.sleep(0.02)
                    continue
                except RefusedError as error:
                    if error.refusal not in (Refusal.STOPPING, Refusal.INCOMPLETE):
                        raise
    finally:
        stopping.set()
        thread.join()
    assert deaths, "it was never killed in the middle"
    assert [snapshot.record["number"] for snapshot in client.snapshots().snapshots] == [1, 2, 3, 4, 5]
    check_store(process, history, 1, 2, 3, 4, 5)


def test_a_part_whose_connection_breaks_goes_on(process: MirrorProcess, client: Client, history: History) -> None:
    numbers = list(history.numbers(*history.records))
    data = history.part(numbers)
    connection = client.connection()
    connection.putrequest("POST", wire.volume_path("pg", "parts"))
    for name, value in {**client.standard_headers(), "Content-Length": str(len(data))}.items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(data[: len(data) * 2 // 3])
    connection.close()
    eventually(lambda: len(client.lacks(numbers)) < len(numbers) * 2 // 3, "what was sent")
    lacking = client.lacks(numbers)
    assert lacking
    client.put(history.part(lacking))  # type: ignore[arg-type]
    assert client.commit(history.records).committed == [1, 2, 3, 4, 5]


def test_the_same_part_at_once_over_many_connections(process: MirrorProcess, client: Client, history: History) -> None:
    data = history.part(history.numbers(*history.records))
    results: list[object] = []

    def send() -> None:
        mine = process.client()
        mine.generation = 1
        while True:
            try:
                results.append(mine.put(data))
                return
            except RefusedError as error:
                if error.refusal is not Refusal.BUSY:
                    results.append(error)
                    return
                time.sleep(0.05)

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(result, messages.PartReceipt) for result in results), results
    assert client.commit(history.records).committed == [1, 2, 3, 4, 5]
    eventually(lambda: not client.state().staged_objects)
    check_store(process, history, 1, 2, 3, 4, 5)


def test_reading(process: MirrorProcess, client: Client, history: History) -> None:
    push(client, history, 5)
    numbers = list(history.numbers(history.records[-1]))
    _, items = client.objects(read_objects.ReadObjects(numbers))
    plain = {}
    for item in items:
        bases = [plain[number] for number in item.base_numbers()]
        plain[item.frame.number] = item.decode(Bases(*bases) if bases else None)
        assert object_stream.content_hash_matches(item, plain[item.frame.number], IDENTITY.seed)
    assert sorted(plain) == numbers
    differences = [item.frame.number for item in items if item.frame.encoding > Encoding.ZSTD]
    assert differences

    parser, alone = client.objects(read_objects.ReadObjects([differences[0]], encodings=1 << Encoding.RAW))
    assert (len(alone), alone[0].decode(None)) == (1, plain[differences[0]]), "for a reader that knows no differences"

    bases = list(items[[item.frame.number for item in items].index(differences[0])].base_numbers())
    _, with_base = client.objects(read_objects.ReadObjects([differences[0]]))
    assert [item.frame.number for item in with_base] == [*bases, differences[0]]
    _, without = client.objects(read_objects.ReadObjects([differences[0]], have=bases))
    assert [item.frame.number for item in without] == [differences[0]]

    request = number_runs.pack_runs(number_runs.runs_of([*numbers, numbers[-1] + 7]))
    answer = number_runs.unpack_runs(client.request("POST", wire.volume_path("pg", "bases"), request))
    every = {base for item in items for base in item.base_numbers()}
    assert {number for first, last in answer for number in range(first, last + 1)} == every

    parser, items = client.objects(read_objects.ReadObjects(runs=[(numbers[0], numbers[-1])], limit_bytes=2000))
    assert parser.cut
    assert 0 < len(items) < len(numbers)

    _, (item,) = client.objects(read_objects.ReadObjects([numbers[-1] + 7]))
    assert item.is_absent
    _, items = client.objects(read_objects.ReadObjects(runs=[(numbers[-1] + 1, numbers[-1] + 7)]))
    assert items == []


class Fetched:
    """A reader that has only what came."""

    def __init__(self, items: list[object_stream.Item]) -> None:
        self.plain: dict[int, bytes] = {}
        for item in items:
            bases = [self.plain[number] for number in item.base_numbers()]
            self.plain[item.frame.number] = item.decode(Bases(*bases) if bases else None)

    def read(self, pointer: object) -> bytes:
        return self.plain[pointer.number]  # type: ignore[attr-defined]


def test_the_root_comes_in_one_answer_and_all_tables_in_another(client: Client, history: History) -> None:
    push(client, history, 4, 5)
    record = history.records[-1]
    parser, items = client.tables("5", limit=1)
    assert parser.cut
    tree = SnapshotTree(Fetched(items), record.root)  # type: ignore[arg-type]
    root = tree.inode(1)  # type: ignore[arg-type]
    assert root is not None
    list(tree.entries(root))
    parser, items = client.tables("5", limit=32 << 20)
    assert not parser.cut
    tree = SnapshotTree(Fetched(items), record.root)  # type: ignore[arg-type]
    names = {entry.name for record in tree.inodes() if record.mode >> 12 == 4 for entry in tree.entries(record)}
    assert names == {name for node in history.states[5].nodes.values() for name in node.names}
    assert all(item.frame.kind != ObjectKind.CHUNK or not item.frame.base for item in items)
    with refused(Refusal.NOT_FOUND):
        client.tables("77")


def test_a_long_poll_hears_of_a_commit(process: MirrorProcess, client: Client, history: History) -> None:
    revision = client.snapshots().revision
    heard: list[messages.SnapshotList] = []
    thread = threading.Thread(target=lambda: heard.append(process.client().snapshots(f"?revision={revision}&wait=60")))
    thread.start()
    time.sleep(0.3)
    assert not heard
    push(client, history, 1)
    thread.join(PATIENCE_S)
    assert [snapshot.record["number"] for snapshot in heard[0].snapshots] == [1]
    assert heard[0].revision == client.snapshots().revision
    before = time.monotonic()
    client.snapshots(f"?revision={heard[0].revision}&wait=0")
    assert time.monotonic() - before < 20, "nothing to wait for"


def test_polls_for_snapshots_keep_no_request_out(process: MirrorProcess, client: Client) -> None:
    revision = client.snapshots().revision
    waiting = []
    try:
        for _ in range(ServerOptions().max_requests):
            connection = client.connection()
            connection.request("GET", wire.volume_path("pg", "snapshots") + f"?revision={revision}&wait=60",
                               headers=client.standard_headers())  # fmt: skip
            waiting.append(connection)
        eventually(lambda: f"connections {len(waiting) + 1}.0" in client.request("GET", "/metrics").decode())
        assert client.state().name == "pg"
    finally:
        for connection in waiting:
            connection.close()
    eventually(lambda: "connections 1.0" in client.request("GET", "/metrics").decode())


def test_more_numbers_are_queried_than_go_into_a_request(process: MirrorProcess, client: Client) -> None:
    """As for the first push of a volume of 64 GiB."""
    numbers = NumberSet()
    for number in range(1, wire.MAX_LACKS_NUMBERS + 10):
        numbers.add(number)
    (process.root.parent / "token").write_text(process.admin)

    async def lacks() -> NumberSet:
        target = HttpTarget(f"http://127.0.0.1:{process.port}/pg", MirrorAccess(str(process.root.parent / "token")))
        try:
            await target.open(IDENTITY)
            return await target.lacks(numbers)
        finally:
            await target.close()

    assert len(asyncio.run(lacks())) == len(numbers)


def test_fencing(process: MirrorProcess, client: Client, history: History) -> None:
    push(client, history, 1)
    old = process.client()
    old.generation = 1
    new = process.client()
    new.claim(2, "host-b")
    before = {path: path.read_bytes() for path in (process.root / "pg" / "store").rglob("*") if path.is_file()}
    part = history.part(history.numbers(*history.records))
    for act in (
        lambda: old.put(part),
        lambda: old.commit(history.records[1:2]),
        lambda: old.request("POST", wire.volume_path("pg", "drop"), message_codec.encode(messages.Drop([1]))),
        lambda: old.request(
            "POST", wire.volume_path("pg", "aside"), message_codec.encode(messages.BranchMessage(0, "x"))
        ),
        lambda: old.request("PUT", wire.volume_path("pg", "snapshots", "1", "hot"), b""),
        lambda: old.claim(1),
        lambda: old.claim(2),
    ):
        with pytest.raises(RefusedError) as caught:
            act()
        assert (caught.value.refusal, caught.value.status) == (Refusal.FENCED, 409)
        assert (caught.value.problem.generation, caught.value.problem.writer_id) == (2, "host-b")
        assert "host-b has claimed generation 2" in str(caught.value)
    assert {p: p.read_bytes() for p in (process.root / "pg" / "store").rglob("*") if p.is_file()} == before
    with refused(Refusal.UNCLAIMED):
        future = process.client()
        future.generation = 9
        future.put(part)
    process.kill()
    process.start()
    assert (new.state().generation, new.state().writer_id) == (2, "host-b")
    new.claim(2, "host-b")
    new.put(part)
    assert new.commit(history.records[1:]).committed == [2, 3, 4, 5]


def test_what_a_fenced_writer_left_becomes_a_branch(process: MirrorProcess, client: Client, tmp_path: Path) -> None:
    old, new = History(tmp_path / "old", 1), History(tmp_path / "new", 1)
    for each in (old, new):
        each.grow(2)
    old.grow(2)
    push(client, old, 1, 2, 3, 4)
    client.claim(2, "host-b")
    new.grow(2, generation=2)
    lacking = client.lacks(new.numbers(*new.records))
    client.put(new.part(lacking))  # type: ignore[arg-type]
    with refused(Refusal.DIVERGED):
        client.commit(new.records)
    answer = message_codec.decode(
        client.request(
            "POST", wire.volume_path("pg", "aside"), message_codec.encode(messages.BranchMessage(2, "host-a"))
        ),
        messages.SnapshotList,
    )
    assert [snapshot.record["number"] for snapshot in answer.snapshots] == [1, 2]
    branches = [(snapshot.record["number"], snapshot.branch) for snapshot in answer.branches]
    assert branches == [(3, "host-a"), (4, "host-a")]
    assert client.commit(new.records).committed == [3, 4]
    process.kill()
    process.start()
    _, items = client.tables("aside.host-a.4", limit=32 << 20)
    tree = SnapshotTree(Fetched(items), old.records[3].root)  # type: ignore[arg-type]
    assert sorted(record.ino for record in tree.inodes()) == sorted(old.states[4].nodes)
    check_store(process, new, 1, 2, 3, 4)
    old.close()
    new.close()


def test_a_volume_that_is_removed_is_none_and_can_be_made_anew(
    process: MirrorProcess, client: Client, history: History
) -> None:
    push(client, history, 1, 2)
    shutil.rmtree(process.root / "pg")
    with refused(Refusal.NOT_FOUND):
        client.state()
    with refused(Refusal.NOT_FOUND):
        client.commit(history.records[:1])
    eventually(
        lambda: not message_codec.decode(client.request("GET", wire.volumes_path()), messages.VolumeList).volumes
    )
    client.create()
    client.claim(1)
    push(client, history, 3)
    check_store(process, history, 3)


def flip(path: str, offset: int) -> None:
    """One bit of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_what_verify_finds_damaged_is_wanted_again(process: MirrorProcess, client: Client, history: History) -> None:
    """No snapshot that needs it is acknowledged before it has come anew."""
    push(client, history, 1, 2)
    shared = sorted(set(history.numbers(history.records[1])) & set(history.numbers(history.records[2])))
    repository = Repository.open(str(process.root / "pg" / "store"), IDENTITY, Disk(), readonly=True)
    source, row = next(found for found in map(repository.index.locate, shared) if found[1].kind == ObjectKind.CHUNK)
    repository.close()
    flip(source.path, row.offset + FRAME_BYTES)
    assert "damaged" in replicator("verify", "--root", str(process.root), code=5)
    with pytest.raises(RefusedError) as caught:
        push(client, history, 3)
    assert (caught.value.refusal, caught.value.problem.missing) == (Refusal.INCOMPLETE, [row.number])
    assert client.lacks(history.numbers(history.records[2])) == [row.number]
    push(client, history, 3)
    assert "all is good" in replicator("verify", "--root", str(process.root))
    check_store(process, history, 1, 2, 3)


def test_a_mirror_verifies_a_share_of_its_stores_a_day_and_requests_again_what_is_bad(
    process: MirrorProcess, client: Client, history: History
) -> None:
    push(client, history, 1, 2)
    process.stop()
    store = process.root / "pg" / "store"
    scrubbing = MirrorProcess(process.root, "--verify", "100%", "--upkeep", "0.2")
    scrubbing.start()
    try:
        eventually(lambda: b'"kind":"verified"' in (store / "snapshots.log").read_bytes(), "a whole pass")
        lines = (store / "snapshots.log").read_bytes().splitlines()
        (line,) = [json.loads(each) for each in lines if b'"kind":"verified"' in each]
        assert (line["snapshots"], line["whole"], line["bad"]) == ([[1, 2]], True, 0)
        scrubbing.stop()
        repository = Repository.open(str(store), IDENTITY, Disk(), readonly=True)
        shared = sorted(set(history.numbers(history.records[1])) & set(history.numbers(history.records[2])))
        source, row = next(found for found in map(repository.index.locate, shared) if found[1].kind == ObjectKind.CHUNK)
        repository.close()
        flip(source.path, row.offset + FRAME_BYTES)
        (store / "scrub.json").unlink()  # as after a day
        scrubbing.start()
        eventually((store / "suspects").exists, "the suspect")
        again = scrubbing.client()
        again.claim(1)
        with pytest.raises(RefusedError) as caught:
            push(again, history, 3)
        assert (caught.value.refusal, caught.value.problem.missing) == (Refusal.INCOMPLETE, [row.number])
    finally:
        scrubbing.stop()


def test_verify_reports_a_lost_record_and_not_that_all_is_good(
    process: MirrorProcess, client: Client, history: History
) -> None:
    """It printed 'all is good', and ended with 5."""
    push(client, history, 1, 2)
    repository = Repository.open(str(process.root / "pg" / "store"), IDENTITY, Disk(), readonly=True)
    source, row = repository.index.locate(history.records[0].last_number)
    repository.close()
    flip(source.path, row.offset + FRAME_BYTES)
    answer = replicator("verify", "--root", str(process.root), code=5)
    assert "all is good" not in answer
    assert "  snapshot 1: " in answer


def test_drops_holds_and_collection(process: MirrorProcess, client: Client, history: History) -> None:
    push(client, history, 1, 2, 3, 4, 5)
    client.request(
        "PUT", wire.volume_path("pg", "holds", "standby"), message_codec.encode(messages.HoldMessage(2, 600))
    )
    answer = message_codec.decode(
        client.request("POST", wire.volume_path("pg", "drop"), message_codec.encode(messages.Drop([1, 2, 5, 77]))),
        messages.SnapshotList,
    )
    assert [snapshot.record["number"] for snapshot in answer.snapshots] == [2, 3, 4, 5], "held, and the newest, stay"
    holds = message_codec.decode(
        client.request("DELETE", wire.volume_path("pg", "holds", "standby")), messages.HoldList
    )
    assert holds.holds == []
    check_store(process, history, 2, 3, 4, 5)


def test_a_mirrors_own_retention(tmp_path: Path) -> None:
    history = History(tmp_path / "source", 9)
    process = MirrorProcess(tmp_path / "root", "--keep", "2", "--upkeep", "0.1")
    process.start()
    client = process.client()
    client.create()
    client.claim(1)
    for _ in range(24):
        history.grow(1, steps=4)
        push(client, history, len(history.records))
    log = process.root / "pg" / "store" / "snapshots.log"
    eventually(lambda: [s.record["number"] for s in client.snapshots().snapshots] == [23, 24])
    eventually(lambda: b'"collected"' in log.read_bytes())
    check_store(process, history, 23, 24)
    assert push(client, history, 3, history_too=True).committed == [3], "what is gone was found lacking, and came again"
    process.stop()
    history.close()


def test_a_hot_list_travels_with_its_snapshot(client: Client, history: History) -> None:
    push(client, history, 1)
    path = wire.volume_path("pg", "snapshots", "1", "hot")
    assert client.request("GET", path) == b""
    data = hot_codec.pack_hot([(5, 0, 16)])  # type: ignore[list-item]
    client.request("PUT", path, data)
    assert client.request("GET", path) == data
    with refused(Refusal.BAD_REQUEST):
        client.request("PUT", path, b"x")


def test_nothing_without_a_token_but_health(process: MirrorProcess, client: Client) -> None:
    anonymous = process.client("")
    assert b'"ok"' in anonymous.request("GET", wire.HEALTH_PATH)
    assert b'"ready"' in anonymous.request("GET", wire.READY_PATH)
    paths = ["", "claim", "snapshots", "lacks", "parts", "commit", "drop", "aside", "holds", "holds/x", "objects"]
    paths += ["promote", "objects/0001000000000001", "snapshots/1/tables", "snapshots/1/hot"]
    served, wrong = 0, process.admin[:-1] + ("x" if process.admin[-1] != "x" else "y")
    places = [f"{wire.volumes_path()}/pg/{path}".rstrip("/") for path in paths]
    for path in (wire.METRICS_PATH, wire.volumes_path(), *places):
        for method in ("GET", "PUT", "POST", "DELETE"):
            for token in ("", "snapfs_00000000_" + "x" * 43, wrong):
                with pytest.raises(RefusedError) as caught:
                    process.client(token).request(method, path, b"")
                assert caught.value.refusal in (Refusal.UNAUTHORIZED, Refusal.BAD_REQUEST), path
                served += caught.value.refusal is Refusal.UNAUTHORIZED
    assert served == 3 * 20


def test_rights(process: MirrorProcess, client: Client, history: History) -> None:
    tokens = Tokens(str(process.root / "tokens.json"))
    reader = process.client(tokens.create({"pg": "read"})[1])
    pusher = process.client(tokens.create({"pg": "push"})[1])
    other = process.client(tokens.create({"redis": "admin"})[1])
    pusher.generation = 1
    push(pusher, history, 1)
    assert len(reader.snapshots().snapshots) == 1
    assert [state.name for state in _volumes(reader)] == ["pg"]
    assert _volumes(other) == []
    with refused(Refusal.FORBIDDEN):
        reader.claim(5)
    with refused(Refusal.FORBIDDEN):
        pusher.request("POST", wire.volume_path("pg", "promote"), message_codec.encode(messages.Promote()))
    with pytest.raises(RefusedError, match="it takes the right to prune"):  # not push, which would not do
        reader.request("POST", wire.volume_path("pg", "drop"), message_codec.encode(messages.Drop([1])))
    with refused(Refusal.NOT_FOUND):
        other.state()
    with refused(Refusal.NOT_FOUND):
        other.create("pg")
    name, _ = next((token.id, token) for token in tokens.all().values() if token.rights == {"pg": "read"})
    tokens.revoke(name)
    with refused(Refusal.UNAUTHORIZED):
        reader.snapshots()
    text = (process.root / "tokens.json").read_text()
    assert process.admin not in text
    assert process.admin.split("_", 2)[2] not in text
    assert (process.root / "tokens.json").stat().st_mode & 0o777 == 0o600


def _volumes(client: Client) -> list[messages.VolumeState]:
    return message_codec.decode(client.request("GET", wire.volumes_path()), messages.VolumeList).volumes


BAD_NAMES = ["..", "%2e%2e", "a%2fb", "..%2f..%2fetc", "A", "a.b", "x" * 64, "a%00", "tokens.json"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_reach_no_file(process: MirrorProcess, name: str) -> None:
    before = sorted(process.root.parent.rglob("*"))
    for method, body in (("PUT", message_codec.encode(CREATE)), ("GET", None)):
        with pytest.raises(RefusedError):
            process.client().request(method, f"{wire.volumes_path()}/{name}", body)
    for rest in ("holds/..%2f..%2fx", "snapshots/..%2f1/hot", "objects/..%2f1"):
        with pytest.raises(RefusedError):
            process.client().request("PUT", f"{wire.volumes_path()}/pg/{rest}", b"")
    assert sorted(process.root.parent.rglob("*")) == before


def test_another_volume_of_the_same_name(client: Client) -> None:
    client.create()
    with refused(Refusal.EXISTS):
        client.create(wanted=messages.CreateVolume("cd" * 16, CREATE.seed))


def test_bad_bodies(process: MirrorProcess, client: Client, history: History) -> None:
    for path in ("claim", "commit", "drop", "aside", "objects", "promote"):
        for body in (b"", b"{", b"[]", b'{"numbers": "x"}', b"\xff" * 10, b'{"records": []}', b"9" * 5000):
            if (path == "objects" and b"records" in body) or (path == "promote" and body.startswith(b'{"')):
                continue  # a field that is not known is passed over
            with refused(Refusal.BAD_REQUEST):
                client.request("POST", wire.volume_path("pg", path), body)
    with refused(Refusal.TOO_LARGE):
        client.request("POST", wire.volume_path("pg", "lacks"), number_runs.pack_runs([(1, 1 << 60)]))
    with refused(Refusal.BAD_REQUEST):
        client.request("POST", wire.volume_path("pg", "objects"), b'{"runs": [[18446744073709551615, 1], [1, 999999]]}')
    with refused(Refusal.TOO_LARGE):
        client.request("POST", wire.volume_path("pg", "commit"), b" " * (6 << 20))
    with refused(Refusal.BAD_REQUEST):
        client.put(b"GARBAGE" * 100)
    with refused(Refusal.VERSION):
        client.request("GET", wire.volume_path("pg"), headers={wire.PROTOCOL_HEADER: "2"})
    data = history.part(history.numbers(*history.records))
    with refused(Refusal.BAD_REQUEST):
        client.put(data[:-5])
    assert len(client.lacks(history.numbers(*history.records))) <= 1, "what came before the end is kept"
    assert not [line for line in process.log() if "traceback" in line]


def test_the_window_shrinks_while_a_reader_waits(client: Client, history: History) -> None:
    """And not for who reads in the background."""
    push(client, history, 1)
    wide = int(client.headers[wire.WINDOW_HEADER])
    assert wide > 1
    wanted = message_codec.encode(read_objects.ReadObjects([history.records[0].root.number]))
    path = wire.volume_path("pg", "objects")
    client.request("POST", path, wanted, {wire.PRIORITY_HEADER: "bulk"})
    client.state()
    assert int(client.headers[wire.WINDOW_HEADER]) == wide
    client.request("POST", path, wanted, {wire.PRIORITY_HEADER: "urgent"})
    client.state()
    assert int(client.headers[wire.WINDOW_HEADER]) == 1
    while int(client.headers[wire.WINDOW_HEADER]) == 1:
        client.state()
    assert int(client.headers[wire.WINDOW_HEADER]) == wide


def test_the_rate_is_kept_over_any_time() -> None:
    rate, now, taken, begun = RequestRate(1000.0), 50.0, 0, 50.0
    for count in (100, 900, 500, 5000, 1, 700) * 5:
        taken += count
        now += rate.delay(now, count)
        assert taken <= 1000.0 * (now - begun) + 1000.0 + 1e-6, "a second's worth at once, and no more"
    assert taken >= 1000.0 * (now - begun), "and no less"
    assert RequestRate(0.0).delay(1.0, 1 << 40) == 0.0


def test_it_goes_down_gently(process: MirrorProcess, client: Client) -> None:
    revision, waiting = client.snapshots().revision, client.connection()
    try:
        path = f"{wire.volume_path('pg', 'snapshots')}?revision={revision}&wait={wire.MAX_WAIT_SECONDS:.0f}"
        waiting.request("GET", path, headers=client.standard_headers())
        for _ in range(2):  # when what was sent later is answered, that request has come
            client.request("GET", "/metrics")
        before = time.monotonic()
        assert process.stop() == 0
        taken_s = time.monotonic() - before
        answer = waiting.getresponse()
        assert answer.status == 200, "who waited was answered"
        message_codec.decode(answer.read(), messages.SnapshotList)
    finally:
        waiting.close()
    assert taken_s < wire.MAX_WAIT_SECONDS, "it waited all that time"


def test_connections_beyond_the_limit_are_closed(tmp_path: Path) -> None:
    """Of those who have shown a token; who has not makes room (test_mirror_storm.py)."""
    process = MirrorProcess(tmp_path / "root", "--max-connections", "4", "--max-per-address", "4")
    process.start()
    idle = [process.client().connection() for _ in range(4)]
    try:
        for each in idle:
            each.request("GET", wire.volumes_path(), headers=process.client().standard_headers())
            each.getresponse().read()
        with pytest.raises(OSError):
            process.client().request("GET", wire.HEALTH_PATH)
    finally:
        for each in idle:
            each.close()
    eventually(lambda: _answers(process))
    process.stop()


def _answers(process: MirrorProcess) -> bool:
    try:
        return b"ok" in process.client().request("GET", wire.HEALTH_PATH)
    except OSError:
        return False


def test_tls_with_client_certificates(tmp_path: Path, history: History) -> None:
    authority = trustme.CA()
    server, mine = authority.issue_cert("127.0.0.1"), authority.issue_cert("host-a")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    pem = str(tmp_path / "server.pem")
    process = MirrorProcess(
        tmp_path / "root", "--tls-cert", pem, "--tls-key", pem, "--client-ca", str(tmp_path / "ca.pem")
    )
    process.start()
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    process.tls = context
    with pytest.raises(OSError):
        process.client().create()
    mine.configure_cert(context)
    client = process.client()
    client.create()
    client.claim(1)
    push(client, history, 1, 2)
    assert len(client.snapshots().snapshots) == 2
    process.tls = ssl.create_default_context()
    with pytest.raises(ssl.SSLError):
        process.client().state()
    process.stop()


def test_metrics(process: MirrorProcess, client: Client, history: History) -> None:
    push(client, history, 1, 2)
    text = client.request("GET", wire.METRICS_PATH).decode()
    for line in (
        'snapfs_mirror_snapshots{volume="pg"} 2.0', 'snapfs_mirror_generation{volume="pg"} 1.0',
        'snapfs_mirror_committed_snapshots_total{volume="pg"} 2.0', 'operation="commit",result="ok"',
        "snapfs_mirror_received_bytes_total", "snapfs_mirror_resident_memory_bytes", "snapfs_mirror_request_seconds_b",
    ):  # fmt: skip
        assert line in text, line


def test_the_commands(process: MirrorProcess, client: Client, history: History, tmp_path: Path) -> None:
    push(client, history, 1, 2)
    token = tmp_path / "token"
    token.write_text(process.admin)
    url = f"http://127.0.0.1:{process.port}"
    assert "snapshot 2 of" in replicator("list", str(process.root))
    assert "snapshot 2 of" in replicator("list", url, "--token-file", str(token))
    assert "pg: 2 snapshots" in replicator("verify", "--root", str(process.root))
    answer = replicator("promote", f"{url}/pg", "--token-file", str(token), "--holder", "host-b")
    assert "generation 2 is host-b's" in answer
    assert f"snapfs mount --from {url}/pg VOLUME MOUNTPOINT" in answer
    with refused(Refusal.FENCED):
        client.put(history.part(history.numbers(*history.records)))
    assert replicator("promote", str(process.root / "pg"), code=4) == ""
    process.stop()
    assert "generation 3 is promoted's" in replicator("promote", str(process.root / "pg"))
    assert "pg: snapshot 2" in replicator("list", str(process.root))
    made = replicator("token", "create", "--root", str(process.root), "--grant", "pg:read", "--note", "for ann").strip()
    listed = replicator("token", "list", "--root", str(process.root))
    assert "pg:read  (for ann)" in listed
    assert made not in listed
    replicator("token", "revoke", "--root", str(process.root), made.split("_")[1])
    assert "for ann" not in replicator("token", "list", "--root", str(process.root))
    assert replicator("token", "create", "--root", str(process.root), "--grant", "pg:write", code=3) == ""
    segment = next((process.root / "pg" / "store" / "segments").iterdir())
    data = bytearray(segment.read_bytes())
    data[200] ^= 1
    segment.write_bytes(data)
    assert "damaged" in replicator("verify", "--root", str(process.root), code=5)


def replicator(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([*REPLICATOR, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (code in (2, 3, 4))
    return done.stdout
