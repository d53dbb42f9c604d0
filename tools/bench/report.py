"""How the figures of a benchmark are shown: a line on the terminal, a table in the README."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- bench: begin", "<!-- bench: end -->"
TITLES = {
    "plain": "plain directory",
    "python": "Python path",
    "python_1s": "with a snapshot a second",
    "native": "native path",
    "native_1s": "with a snapshot a second",
    "passthrough": "C passthrough",
}


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def row_text(name: str, figures: dict[str, Any]) -> str:
    """One line: the plain value with its unit, then each column with its ratio."""
    values, ratios = figures["values"], figures["ratios"]
    cells = [f"{column} {number(values[column])} ({ratios[column]:.2f})" for column in values if column != "plain"]
    return f"{name:28s} {number(values['plain'])} {figures['unit']}  {'  '.join(cells)}"


def markdown(results: dict[str, Any]) -> str:
    """The workloads as a table of ratios, with the plain directory's own value; then what has no counterpart."""
    lines: list[str] = []
    workloads: dict[str, Any] = results["workloads"]
    if workloads:
        columns = list(max((figures["values"] for figures in workloads.values()), key=len))
        lines += [f"| | {' | '.join(TITLES[column] for column in columns)} |", "| --- |" + " ---: |" * len(columns)]
        for name, figures in workloads.items():
            found = figures["ratios"]
            ratios = [f"{found[column]:.2f}" if column in found else "-" for column in columns[1:]]
            plain = f"{number(figures['values']['plain'])} {figures['unit']}"
            lines.append(f"| {name} | {' | '.join([plain, *ratios])} |")
        lines.append("")
    for name, measured in results["measures"].items():
        lines.append(f"- {name}: {flat(measured).replace('_', ' ')}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines += ["", f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}."]
    return "\n".join(lines)


def flat(measured: dict[str, Any]) -> str:
    """Nested figures in one line."""
    parts = []
    for key, value in measured.items():
        parts.append(f"{key} ({flat(value)})" if isinstance(value, dict) else f"{key} {number(float(value))}")
    return ", ".join(parts)


def put_into_readme(table: str) -> None:
    """Replace what stands between the two marks."""
    text = README.read_text()
    start, end = text.index(BEGIN), text.index(END)
    start = text.index("\n", start) + 1
    README.write_text(text[:start] + table + "\n" + text[end:])
