#!/usr/bin/env python3
"""Draws docs/internals/architecture.svg: the parts of snapfs, and what flows between them.

tools/docs/architecture.py          writes the picture
tools/docs/architecture.py --check  exit code 1 if the picture in the tree is not what this script draws
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

OUT = Path(__file__).resolve().parents[2] / "docs" / "internals" / "architecture.svg"
WIDTH, HEIGHT = 1180, 720
FRAMES: list[tuple[int, int, int, int, int, str]] = [  # x, y, width, height, where its title begins, title
    (15, 240, 570, 323, 180, "daemon (snapfs/daemon)"),
    (900, 240, 250, 458, 925, "targets"),
]
Box = tuple[int, int, int, int, str, list[str], str]
BOXES: list[Box] = [  # x, y, width, height, title, lines, class
    (30, 20, 230, 70, "application", ["PostgreSQL, Redis, SQLite"], "out"),
    (30, 130, 230, 70, "kernel", ["FUSE, page cache"], "out"),
    (30, 275, 230, 88, "router (C threads)", ["snapfs/fuse/native", "file data, without the GIL"], "daemon"),
    (340, 20, 230, 70, "commands", ["snapfs/commands"], "out"),
    (340, 130, 230, 70, "supervisor", ["snapfs/daemon/supervision", "keeps the mount open"], "daemon"),
    (340, 275, 230, 88, "handlers, control", ["snapfs/fuse, snapfs/control", "names, attributes, .snapfs"], "daemon"),
    (
        30, 425, 230, 123, "live tree",
        ["snapfs/live", "names: namespace, database", "bytes: content, native, backing", "absent files: lazy"],
        "daemon",
    ),
    (
        340, 425, 230, 123, "transfer",
        ["snapfs/transfer", "seal, restore, repair", "lazy, sources", "failover"], "daemon",
    ),
    (
        340, 610, 230, 88, "store",
        ["snapfs/store", "segments, tables,", "snapshots.log"], "disk",
    ),
    (640, 610, 200, 88, "agent", ["replicator/agent, source", "one feeder a target"], "other"),
    (925, 595, 200, 88, "object store", ["replicator/targets", "S3 and kin,", "a conditional head"], "other"),
    (925, 445, 200, 88, "folder", ["replicator/targets", "another disk"], "other"),
    (925, 275, 200, 106, "mirror", ["replicator/mirror", "replicator/volumes", "verifies, then fsyncs"], "other"),
    (925, 100, 200, 88, "another host", ["mount --from: reads lazily,", "claims the generation"], "out"),
]  # fmt: skip
ARROWS: list[tuple[int, int, int, int, str, float]] = [  # x1, y1, x2, y2, label, how far along the arrow it stands
    (145, 90, 145, 130, "system calls", 0.4),
    (145, 200, 145, 275, "/dev/fuse", 0.25),
    (260, 319, 340, 319, "names", 0.5),
    (455, 90, 455, 130, "starts", 0.4),
    (455, 200, 455, 240, "starts, restarts", 0.4),
    (145, 363, 145, 425, "bytes", 0.5),
    (370, 363, 240, 425, "names", 0.5),
    (455, 363, 455, 425, "snapshot", 0.5),
    (260, 475, 340, 475, "cut", 0.5),
    (340, 515, 260, 515, "lazy read", 0.5),
    (440, 548, 440, 610, "segment", 0.6),
    (640, 654, 570, 654, "reads", 0.5),
    (840, 640, 925, 640, "push", 0.35),
    (800, 610, 925, 490, "push", 0.4),
    (730, 610, 925, 350, "push", 0.4),
    (1025, 240, 1025, 188, "objects on demand", 0.5),
    (900, 300, 570, 450, "objects of a lazy mount", 0.5),
]
STYLE = (
    "text{font-family:sans-serif;font-size:13px;fill:#1b1f24}.title{font-weight:bold;font-size:15px}"
    "text.label{font-size:12px;fill:#57606a;stroke:#fff;stroke-width:8px;paint-order:stroke}"
    "rect{stroke:#57606a;stroke-width:1.2;rx:8}.frame{fill:none;stroke-dasharray:5 4}.out{fill:#f6f8fa}"
    ".daemon{fill:#ddf4ff}.disk{fill:#fff8c5}.other{fill:#dafbe1}line{stroke:#57606a;stroke-width:1.4;marker-end:url(#tip)}"
)


def draw() -> str:
    """The picture as SVG text; the same for every run."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="Architecture of snapfs">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#57606a"/></marker></defs>',
        f'<rect x="0" y="0" width="{WIDTH}" height="{HEIGHT}" style="fill:#fff;stroke:none"/>',
    ]
    for x, y, width, height, title_x, title in FRAMES:
        parts.append(f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}"/>')
        parts.append(f'<text class="title" x="{title_x}" y="{y + 23}">{escape(title)}</text>')
    for x, y, width, height, title, lines, kind in BOXES:
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>')
        parts.append(f'<text class="title" x="{x + 12}" y="{y + 23}">{escape(title)}</text>')
        parts += [f'<text x="{x + 12}" y="{y + 43 + 17 * at}">{escape(line)}</text>' for at, line in enumerate(lines)]
    parts += [f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>' for x1, y1, x2, y2, *_ in ARROWS]
    for x1, y1, x2, y2, label, along in ARROWS:  # after all lines, so that none strikes a label through
        beside, above = (6 if x1 == x2 else 0), (-9 if y1 == y2 else 4)
        x, y = round(x1 + (x2 - x1) * along) + beside, round(y1 + (y2 - y1) * along) + above
        anchor = "start" if beside else "middle"
        parts.append(f'<text class="label" x="{x}" y="{y}" text-anchor="{anchor}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return 0 if OUT.exists() and OUT.read_text() == draw() else 1
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
