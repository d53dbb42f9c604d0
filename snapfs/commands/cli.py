"""The command line of snapfs: which commands there are. How one ends is the same for all programs (commandline.py).

Invariant: a command imports what it needs when it is called. To start Python is most of what a short one takes, and all
that a mount waits for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click

from snapfs import __version__
from snapfs.base import commandline, errors

_CODES = f"""\b
Exit codes:
  {errors.EXIT_OK:3}  done
  {errors.EXIT_USAGE:3}  the command line is wrong
  {errors.EXIT_ENVIRONMENT:3}  the request cannot be carried out here: wrong path, no permission, no FUSE, bad setting
  {errors.EXIT_BUSY:3}  another process holds what is needed: a locked volume, an open file, a used mountpoint
  {errors.EXIT_CORRUPT:3}  stored bytes are damaged
  {errors.EXIT_VERSION:3}  a format of a later version
  {errors.EXIT_SNAPSHOT_FAILED:3}  the snapshot could not be sealed; its changes are in the next one
  {errors.EXIT_ATTENTION:3}  `volumes`, `status` without a PLACE: something is wrong with a volume; `drill`: too late;
       `import --force`: files kept changing
  {errors.EXIT_DAEMON_DIED:3}  the daemon was killed or died, and none follows it: the line advises what to do
  {errors.EXIT_DRILL_FAILED:3}  `drill`: the application does not recover from the snapshot
{commandline.EXIT_CODES}"""


_MODULES = {
    "mount": "mount",
    "umount": "umount",
    "upgrade": "upgrade",
    "standby": "standby",
    "forks.fork_command": "fork",
    "snapshots": "snapshot list show log",
    "history.diff_command": "diff",
    "history.find_command": "find",
    "history.cat_command": "cat",
    "history.undelete_command": "undelete",
    "history.du_command": "du",
    "retention_commands": "drop prune hold release",
    "recover": "restore rollback clone fetch",
    "moving.import_command": "import",
    "moving.adopt_command": "adopt",
    "moving.export_command": "export",
    "metrics_command": "metrics",
    "hook_command": "hook",
    "group_command": "group",
    "volume_status": "status",
    "overview.volumes_command": "volumes",
    "overview.audit_command": "audit",
    "verify_command": "verify",
    "drills.drill_command": "drill",
    "configcheck": "configcheck",
    "doctor": "doctor",
    "schemas.schema_command": "schema",
}
"""The modules of snapfs.commands, and the commands that each has."""


class _Commands(click.Group):
    """Imports the module of a command when it is requested."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands:
            its = [module for module, names in _MODULES.items() if cmd_name in names.split()]
            self._load(its or list(_MODULES))  # all of them, for the list in the error
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.everything())

    def everything(self) -> dict[str, click.Command]:
        """All commands by name."""
        self._load(list(_MODULES))
        return dict(self.commands)

    def _load(self, modules: list[str]) -> None:
        for module in modules:
            for command in importlib.import_module(f"snapfs.commands.{module}").COMMANDS:
                self.add_command(command)


@click.group(
    cls=_Commands,
    epilog=_CODES,
    no_args_is_help=False,  # help without a request is an error of one line
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="snapfs")
def cli() -> None:
    """A filesystem for state directories: crash-consistent snapshots, stored incrementally.

    PLACE is a mountpoint, a path below one, or the folder of a volume, mounted or not. A snapshot goes by its number or
    its name. Times are UTC.
    """


@cli.command("help")
@click.argument("command", required=False)
@click.pass_context
def help_(context: click.Context, command: str | None) -> None:
    """Explain snapfs, or one COMMAND of it."""
    assert context.parent is not None
    if command is None:
        return click.echo(context.parent.get_help())
    found = cli.get_command(context, command)
    if found is None:
        raise click.UsageError(f"No such command '{command}'.", context.parent)
    with click.Context(found, info_name=command, parent=context.parent) as inner:
        return click.echo(found.get_help(inner))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return commandline.run(cli, "snapfs", arguments)


def main() -> None:
    """The entry point of the `snapfs` command."""
    commandline.main(cli, "snapfs")


if __name__ == "__main__":
    main()
