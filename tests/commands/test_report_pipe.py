"""What a daemon reports reaches the command that waits, and no other file."""

from __future__ import annotations

import os
from pathlib import Path

from snapfs.commands.mounting.report_pipe import ReportPipe


def test_one_line_is_reported_and_the_pipe_closed() -> None:
    heard, end = os.pipe()
    ReportPipe(end).report({"recovered": []})
    with open(heard, "rb") as pipe:
        assert pipe.read() == b'{"recovered":[]}\n'


def test_a_late_report_does_not_reach_the_file_that_has_the_number_now(tmp_path: Path) -> None:
    for first in (lambda pipe: pipe.report({"recovered": []}), ReportPipe.close):
        heard, end = os.pipe()
        pipe = ReportPipe(end)
        first(pipe)
        path = tmp_path / "file"
        path.write_bytes(b"the application's")
        fd = os.open(path, os.O_RDWR)
        os.dup2(fd, end)
        pipe.report({"error": "it failed at its end"})
        pipe.close()
        assert path.read_bytes() == b"the application's"
        assert os.fstat(end).st_ino == os.stat(path).st_ino, "it is still open"
        for each in {heard, end, fd}:
            os.close(each)
