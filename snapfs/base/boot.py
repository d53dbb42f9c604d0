"""The boot of this host."""

from __future__ import annotations


def boot_id() -> str:
    """The kernel's id of this boot: another one means that the page cache was lost."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
