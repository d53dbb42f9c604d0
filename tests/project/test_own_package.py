"""A tool runs the package of its own checkout, from whatever directory it is started."""

from __future__ import annotations

import re

from tests.project.project_files import ROOT, project_files

WITHOUT_P = re.compile(r'sys\.executable, "-m", "(snapfs|replicator)"')


def test_no_tool_takes_the_package_of_the_current_directory() -> None:
    """`python -m` looks in the current directory first, `python -P -m` does not."""
    tools = [path for path in project_files() if path.startswith(("tools/", "tests/fakes/"))]  # the demo uses both
    assert len(tools) > 10
    found = [path for path in tools if WITHOUT_P.search((ROOT / path).read_text(errors="replace"))]
    assert found == []
