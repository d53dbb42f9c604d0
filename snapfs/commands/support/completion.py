"""What a shell proposes for the arguments of commands (click's completion)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem


def folders(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders of this host: what a place is, if it is no URL."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]
