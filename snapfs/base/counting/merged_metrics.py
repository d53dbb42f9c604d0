"""Several Prometheus texts as one: what one scrape, or one textfile, may hold.

Each mount's `.snapfs/metrics` is valid alone; two of them after each other are not, as they describe the same families
and have equal series. Here each family is described once, and each series has labels that say which mount it is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

_SAMPLE: Final = re.compile(r"(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>.*)\})? (?P<rest>\S.*)")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def merged(texts: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """One text of several, each with the labels that its series get. Pure.

    What is neither a description nor a sample, and samples that no description comes before, are left out.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for more, text in texts:
        own = [f'{name}="{value.translate(_ESCAPES)}"' for name, value in more.items()]
        family = ""
        for line in text.split("\n"):
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if not any(each.startswith(line[:7]) for each in known):
                    known.append(line)
            elif family and (found := _SAMPLE.fullmatch(line)) is not None:
                labels = ",".join(filter(None, [*own, found["labels"]]))
                shown = f"{found['name']}{{{labels}}}" if labels else found["name"]
                samples.setdefault(family, []).append(f"{shown} {found['rest']}")
    return "".join(f"{line}\n" for family in heads for line in [*heads[family], *samples.get(family, [])])
