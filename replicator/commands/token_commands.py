"""The commands token create, list and revoke; and the options that name a mirror's root and its file of tokens."""

from __future__ import annotations

import os
from typing import Any, Final

import click
import msgspec

from replicator.commands.command_options import json_option, print_json, utc_in_text
from replicator.mirror.tokens import RIGHTS, Token, Tokens

TOKENS_FILE: Final = "tokens.json"

root_option = click.option(
    "--root", required=True, type=click.Path(file_okay=False), help="The folder that holds the mirror's volumes."
)
tokens_option = click.option(
    "--tokens", type=click.Path(dir_okay=False), help=f"The file of tokens. Default: {TOKENS_FILE} below the root."
)


def tokens_path(root: str, tokens: str | None) -> str:
    """The file of tokens of the mirror at `root`."""
    return tokens if tokens is not None else os.path.join(root, TOKENS_FILE)


@click.group("token", short_help="Tokens: make, list, revoke.")
def token() -> None:
    """Tokens of a mirror. Changes count from the next request on; the mirror need not be restarted."""


@token.command("create", short_help="Make a token.")
@root_option
@tokens_option
@click.option("--grant", "grants", multiple=True, required=True, metavar="VOLUME:RIGHT",
              help=f"RIGHT is one of {', '.join(RIGHTS)}, or several joined by +. push does not drop: an agent whose "
              "drops are to be followed takes push+prune. VOLUME may be *.")  # fmt: skip
@click.option("--note", default="", help="What it is for.")
@click.option("--days", type=click.FloatRange(min=0.0), default=0.0, help="How long it is good for. Default: for ever.")
@json_option
def token_create(root: str, tokens: str | None, grants: tuple[str, ...], note: str, days: float, as_json: bool) -> None:
    """Make a token and print it, once: only its hash is kept."""
    rights: dict[str, str] = {}
    for volume, _, right in (grant.rpartition(":") for grant in grants):
        rights[volume] = f"{rights[volume]}+{right}" if volume in rights else right
    made, text = Tokens(tokens_path(root, tokens)).create(rights, note, days * 86400.0)
    click.echo(msgspec.json.encode({**_token_facts(made), "token": text}) if as_json else text)


@token.command("list", short_help="Show the tokens there are.")
@root_option
@tokens_option
@json_option
def token_list(root: str, tokens: str | None, as_json: bool) -> None:
    """Show the tokens there are, without what would let anybody in."""
    known = Tokens(tokens_path(root, tokens)).all()
    facts = [_token_facts(each) for each in known.values()]
    if as_json:
        return print_json({"tokens": facts})
    for each in facts:
        rights = " ".join(f"{volume}:{right}" for volume, right in each["rights"].items())
        until = f", until {utc_in_text(each['expires'] * 10**9)}" if each["expires"] else ""
        note = f"  ({each['note']})" if each["note"] else ""
        click.echo(f"{each['id']}  {rights}{until}{note}")
    return None


@token.command("revoke", short_help="Make a token worthless.")
@root_option
@tokens_option
@click.argument("name", metavar="ID")
def token_revoke(root: str, tokens: str | None, name: str) -> None:
    """Take the token with this ID out, at once."""
    Tokens(tokens_path(root, tokens)).revoke(name)
    click.echo(f"token {name} is worth nothing any more")


def _token_facts(token: Token) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("id", "rights", "note", "created", "expires")}


COMMANDS = (token,)
