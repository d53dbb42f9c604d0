#!/usr/bin/env python3
"""The long form of the seeded model: live tree, sealer and store against plain dicts, without a mount.

    tools/model.py [--first 1] [--seeds 100] [--steps 20000] [--threads 0]

Prints a line for each seed; stops at the first history that goes wrong, with what to type to see it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fakes.world import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=0, help="of the sealer; 0: the same history every time")
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="snapfs-model-") as folder:
            try:
                counts = run(seed, Path(folder), options.steps, options.threads)
            except Exception:
                traceback.print_exc()
                again = f"--first {seed} --seeds 1 --steps {options.steps} --threads {options.threads}"
                print(f"seed {seed} went wrong; again: {sys.argv[0]} {again}")
                return 1
        told = ", ".join(f"{counts[what]} {what}" for what in ("sealed", "failed", "kill", "restart", "rollback"))
        print(f"seed {seed}: {options.steps} steps in {time.monotonic() - started:.1f} s: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
