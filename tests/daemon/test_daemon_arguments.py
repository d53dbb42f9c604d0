"""The command line of a mount in the background (snapfs/commands/mounting/daemon_arguments.py)."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.commands.mount import mount
from snapfs.commands.mounting.daemon_arguments import DaemonArguments

WORDS = ["mount", "--foreground", "--ready-fd=4", "--go-fd=5", "-oro,snapshots.every=1s", "--refuse-changes", "--"]
PLACES = ["/volume", "/mnt"]
NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1)


@given(
    st.builds(DaemonArguments, st.integers(0), st.integers(0), st.lists(NAMES).map(tuple), st.booleans(), NAMES, NAMES)
)
def test_it_is_read_as_it_was_written(arguments: DaemonArguments) -> None:
    read = DaemonArguments.parse(arguments.words())
    assert read == (None if "--" in (arguments.volume, arguments.mountpoint) else arguments)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["mount", "/volume", "/mnt"],
        ["mount", "--foreground", "--", *PLACES],
        ["mount", "-f", *WORDS[2:], *PLACES],
        [*WORDS, *PLACES, "--", "sh"],
        [*WORDS[:-1], *PLACES],
        [*WORDS[:2], "--ready-fd=x", *WORDS[3:], *PLACES],
        [*WORDS[:5], "--existing", "--", *PLACES],
        [*WORDS[:5], "--refuse-changes", "--refuse-changes", "--", *PLACES],
    ],
)
def test_anything_else_is_for_the_command(words: list[str]) -> None:
    assert DaemonArguments.parse(words) is None


def test_the_command_reads_the_same() -> None:
    """That of an earlier version is started with it, when a mount is upgraded to one."""
    arguments = DaemonArguments.parse([*WORDS, *PLACES])
    assert arguments == DaemonArguments(4, 5, ("ro,snapshots.every=1s",), True, "/volume", "/mnt")
    found = mount.make_context("mount", [*WORDS[1:], *PLACES]).params
    assert (found["volume"], found["mountpoint"], found["options"]) == ("/volume", "/mnt", arguments.options)
    assert (found["ready_fd"], found["go_fd"], found["foreground"], found["refuse_changes"]) == (4, 5, True, True)


def test_a_daemon_imports_nothing_that_it_does_not_need() -> None:
    """Each of these takes up to 3 MiB in every daemon of a host."""
    script = (
        "import sys, snapfs.commands.mounting.daemon_process, snapfs.daemon.daemon;"
        "print(*{'click', 'prometheus_client', 'tomlkit', 'tqdm', 'urllib3', 'aiohttp', 'obstore', 'cryptography',"
        "'http.server', 'snapfs.transfer.lazy.attachment', 'snapfs.transfer.restore.rollback'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
