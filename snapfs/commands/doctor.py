"""The command `doctor`: the findings of all checks, one a line, and an exit code of the worst."""

from __future__ import annotations

import sys

import click

from snapfs.base.errors import EXIT_CORRUPT, EXIT_ENVIRONMENT, EXIT_VERSION
from snapfs.commands.support import output
from snapfs.commands.support.locate import locate
from snapfs.commands.support.output import json_option


@click.command("doctor", short_help="Check this machine and a volume.")
@click.argument("place", required=False)
@json_option
def doctor(place: str | None, as_json: bool) -> None:
    """Check this machine, and the volume of PLACE if it is named: FUSE, kernel, limits, dead mounts, the store's chain.

    Exits with 3 if something keeps snapfs from working, with 5 if something stored is damaged, with 6 if a newer snapfs
    wrote the volume.
    """
    from snapfs.commands.checks.examine import examine
    from snapfs.commands.checks.findings import Level

    findings = examine(locate(place).volume_path if place else None)
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
