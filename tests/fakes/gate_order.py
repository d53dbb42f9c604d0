"""In which order the files of all tests run, so that several workers end at about the same time: the longest first.

What a file takes is estimated by its room and the number of its tests, where nobody has measured it: it takes no more
than that the order of the long ones is about right. `--durations=60` shows what has become long.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath

TEST_S = {
    "apps": 25.0, "failover": 10.0, "crash": 6.0, "daemon": 4.0, "mount": 3.0, "project": 3.0, "commands": 2.0,
    "control": 2.0, "monitoring": 2.0, "replicator": 1.0, "transfer": 1.0, "fuse": 0.5, "live": 0.5,
    "base": 0.5, "store": 0.2,
}  # fmt: skip
"""What a test of a room takes, in seconds; of one that is not named, 1."""

FILE_S = {
    "daemon/test_construction.py": 20.0,
    "commands/test_commands_golden.py": 60.0,
    "project/test_dependencies.py": 2.0,
    "replicator/console/test_console_browser.py": 30.0,
    "replicator/mirror/test_mirror_storm.py": 60.0,
    "replicator/targets/test_target_model.py": 60.0,
    "transfer/failover/test_throttle_model.py": 30.0,
    "transfer/lazy/test_lazy_model.py": 30.0,
    "test_imports.py": 20.0,
}
"""What a file takes that is far from its room's usual, in seconds."""


def order(files: list[PurePath]) -> dict[PurePath, int]:
    """The place of each file; `files` has it once for each of its tests, as a path below tests/."""
    counts = Counter(files)

    def seconds(file: PurePath) -> float:
        return FILE_S.get(str(file), counts[file] * TEST_S.get(file.parts[0], 1.0))

    longest_first = sorted(counts, key=lambda file: (-seconds(file), str(file)))
    return {file: place for place, file in enumerate(longest_first)}
