"""The command `schema`: the form of a JSON output, as a JSON Schema."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from snapfs.commands.schemas import schema_files
from snapfs.commands.support import output


def _names(context: click.Context, parameter: click.Parameter, begin: str) -> list[CompletionItem]:
    return [CompletionItem(each) for each in schema_files.names() if each.startswith(begin)]


@click.command("schema", short_help="Print the form of a JSON output.")
@click.argument("name", required=False, shell_complete=_names)
def schema(name: str | None) -> None:
    """Print the JSON Schema NAME: of what a command prints with --json, of .snapfs/status, of a reply of the control
    file, or of a line of a log. Without a NAME all there are.

    A schema names every field of this version. A later version may have more: a reader ignores those it does not know.
    """
    if name is None:
        return output.table(["NAME", "OF"], [[each, schema_files.title(each)] for each in schema_files.names()])
    return output.emit_json(schema_files.schema(name))


COMMANDS = (schema,)
