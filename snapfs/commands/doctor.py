"""The command `doctor`: the findings of all checks, one a line, and an exit code of the worst."""

from __future__ import annotations

import sys

import click

from snapfs.base.errors import EXIT_CORRUPT, EXIT_ENVIRONMENT, EXIT_VERSION
from snapfs.commands.support import output
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option
from snapfs.commands.support.target_options import Given, access_of, with_access


@click.command("doctor", short_help="Check this machine, a volume, a target.")
@click.argument("place", required=False)
@click.option("--targets", is_flag=True, help="Check the targets of the volume as well, over the network.")
@with_access
@json_option
def doctor(place: str | None, targets: bool, given: Given, as_json: bool) -> None:
    """Check this machine, and the volume of PLACE if it is named: FUSE, kernel, limits, dead mounts, the store's chain.

    PLACE may be a target's URL. Then that is checked: whether it answers, TLS, its clock, what the token or key may do
    there, room, formats, and of an object store whether it refuses what it must. Nothing is changed there.

    Exits with 3 if something keeps snapfs from working, with 5 if something stored is damaged, with 6 if a newer snapfs
    wrote the volume.
    """
    from snapfs.commands.checks.examine import examine, examine_target
    from snapfs.commands.checks.findings import Level

    if place is not None and "://" in place:
        if targets:
            raise click.UsageError("--targets belongs to a volume: PLACE is a target already.")
        findings = examine_target(place, access_of(given))
    elif any(given.values()):
        raise click.UsageError("The options of access belong to the URL of a target: a volume's settings name its own.")
    elif targets and place is None:
        raise click.UsageError("--targets takes a PLACE.")
    else:
        findings = examine(locate(place).volume_path if place else None, targets=targets)
    if as_json:
        output.emit_json([finding.facts() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{finding.level.value:<8}{finding.what:<22}{output.printable(finding.words)}")
    bad = [finding for finding in findings if finding.level is Level.BAD]
    if any(finding.damage for finding in bad):
        sys.exit(EXIT_CORRUPT)
    if bad:
        sys.exit(EXIT_VERSION if any(finding.newer for finding in bad) else EXIT_ENVIRONMENT)


COMMANDS = (doctor,)
