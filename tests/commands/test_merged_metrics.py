"""'Prometheus reads .snapfs/metrics': of two mounts it reads one text, in which no series is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from snapfs.base.counting.merged_metrics import merged

ONE = """\
# HELP snapfs_epoch The current epoch.
# TYPE snapfs_epoch gauge
snapfs_epoch 3.0
# HELP snapfs_seal_seconds Time.
# TYPE snapfs_seal_seconds histogram
snapfs_seal_seconds_bucket{le="0.1"} 1.0
snapfs_seal_seconds_bucket{le="+Inf"} 1.0
snapfs_seal_seconds_count 1.0
snapfs_seal_seconds_sum 0.01
"""


def series(text: str) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
    return [
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in text_string_to_metric_families(text) for sample in family.samples
    ]  # fmt: skip


def test_each_family_is_described_once_and_each_series_is_of_one_mount() -> None:
    text = merged([({"mountpoint": "/a"}, ONE), ({"mountpoint": '/odd "\\\n'}, ONE)])
    assert text.count("# TYPE snapfs_epoch gauge\n") == text.count("# HELP snapfs_seal_seconds Time.\n") == 1
    found = series(text)
    assert len(found) == len({each[:2] for each in found}) == 10
    assert {dict(labels)["mountpoint"] for _, labels, _ in found} == {"/a", '/odd "\\\n'}
    of_epoch = [line.startswith("snapfs_epoch{") for line in text.splitlines() if not line.startswith("#")]
    assert of_epoch == [True, True, *[False] * 8]  # a family's series lie together


def test_texts_without_labels_of_their_own_stay_as_they_are() -> None:
    assert merged([({}, ONE)]) == ONE
    assert merged([({"a": "b"}, "no metric\nsnapfs_undescribed 1.0\n")]) == ""


def test_two_mounts_make_one_valid_text(snapfs: Any, mounted: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    snapfs("mount", tmp_path / "second", other)
    try:
        found = series(snapfs("metrics", mounted.path, other).stdout)
        of_all = series(snapfs("metrics").stdout)
    finally:
        snapfs("umount", other)
    assert len(found) == len({each[:2] for each in found})
    assert {dict(labels)["mountpoint"] for _, labels, _ in found} == {str(mounted.path), str(other)}
    assert {dict(labels)["volume"] for _, labels, _ in found} == {str(mounted.volume), str(tmp_path / "second")}
    assert {each[:2] for each in found} <= {each[:2] for each in of_all}
    refused = snapfs("metrics", tmp_path, check=False)
    assert (refused.returncode, "is it mounted?" in refused.stderr) == (3, True)
