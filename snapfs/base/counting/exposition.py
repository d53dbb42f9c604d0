"""Counters and histograms, and their text in Prometheus' format (version 0.0.4).

The daemon has this of its own, as its Python package for it brings along a web server: 3 MiB in each daemon of a host
with many volumes. That package is the reference that the tests compare the text with.

Invariants:
1. A sample never falls. Any thread may count.
2. The text is what prometheus_client writes for the same numbers, byte by byte.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]
Buckets = Iterable[tuple[float, float]]
"""(upper bound, observations up to it), ascending, the last of all."""
_GO_EXPONENT = 6
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", '"': '\\"'})


@dataclass(slots=True)
class Family:
    """A metric: its name without suffix, its kind (counter, gauge, histogram), help, and samples as they are shown."""

    name: str
    kind: str
    text: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, value: float, **labels: str) -> None:
        """One more sample of a counter or gauge."""
        suffix = "_total" if self.kind == "counter" else ""
        self.samples.append((self.name + suffix, tuple(labels.items()), value))

    def add_buckets(self, buckets: Buckets, total: float, **labels: str) -> None:
        """The samples of a histogram; `total`: the sum of what was observed."""
        count = 0.0
        for bound, count in buckets:
            self.samples.append((f"{self.name}_bucket", (*labels.items(), ("le", number(bound))), count))
        self.samples.append((f"{self.name}_count", tuple(labels.items()), count))
        self.samples.append((f"{self.name}_sum", tuple(labels.items()), total))

    def lines(self) -> Iterator[str]:
        shown = f"{self.name}_total" if self.kind == "counter" else self.name
        text = self.text.replace("\\", r"\\").replace("\n", r"\n")
        yield f"# HELP {shown} {text}\n# TYPE {shown} {self.kind}\n"
        for name, labels, value in self.samples:
            pairs = ",".join(f'{key}="{each.translate(_ESCAPES)}"' for key, each in sorted(labels))
            yield f"{name}{f'{{{pairs}}}' if pairs else ''} {number(value)}\n"


class Counter:
    """Counts, for each combination of the values of its labels; without labels from 0 on."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._counts: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def inc(self, amount: float = 1.0, *values: str) -> None:
        """`values`: of the labels. With an `amount` of 0 the sample is there from then on."""
        assert amount >= 0
        assert len(values) == len(self._labels)
        with self._lock:
            self._counts[values] = self._counts.get(values, 0.0) + amount

    @property
    def value(self) -> float:
        """All samples together."""
        return sum(self._counts.values())

    def family(self) -> Family:
        made = Family(self._name, "counter", self._text)
        for values, count in list(self._counts.items()):
            made.add(count, **dict(zip(self._labels, values, strict=True)))
        return made


class Histogram:
    """Counts observations by upper bounds, which ascend."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, (*bounds, math.inf)
        self._counts, self._sum = [0] * len(self._bounds), 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        bucket = next(n for n, bound in enumerate(self._bounds) if value <= bound)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    def family(self) -> Family:
        made, upto, cumulated = Family(self._name, "histogram", self._text), 0, []
        for bound, count in zip(self._bounds, self._counts, strict=True):
            upto += count
            cumulated.append((bound, upto))
        made.add_buckets(cumulated, self._sum)
        return made


def render(families: Iterable[Family]) -> bytes:
    """The text of all of them."""
    return "".join(line for family in families for line in family.lines()).encode()


def one_sample_each(kind: str, values: Mapping[str, float], texts: Mapping[str, str]) -> Iterator[Family]:
    """A family of one sample for each name of `texts` that has a value."""
    for name, text in texts.items():
        if name in values:
            family = Family(name, kind, text)
            family.add(values[name])
            yield family


def number(value: float) -> str:
    """A number as Go writes it, which takes to exponents sooner than Python."""
    value = float(value)
    if math.isinf(value) or math.isnan(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    point = text.find(".")
    if value > 0 and point > _GO_EXPONENT:
        mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{point - 1:02d}"
    return text
