"""The option of commands that reach an object store."""

from __future__ import annotations

import click


def _pairs(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{text}: write NAME=VALUE")
        found[name] = value
    return found


store_option = click.option(
    "--store-option", "store_options", multiple=True, metavar="NAME=VALUE", callback=_pairs,
    help="Of an object store: endpoint, region, allow_http..., as obstore calls them.",
)  # fmt: skip
