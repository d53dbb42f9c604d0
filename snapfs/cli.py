"""The command line under the name that earlier versions had for it: `python -m snapfs.cli`.

A supervisor that was started by one of them runs this command again at `snapfs upgrade` (daemon/supervisor.py), under a
mount that is in use.
"""

from snapfs.commands.cli import main

if __name__ == "__main__":
    main()
