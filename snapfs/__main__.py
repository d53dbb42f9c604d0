"""`python -m snapfs`."""

import sys

from snapfs.commands.mounting.daemon_arguments import DaemonArguments

if __name__ == "__main__":
    arguments = DaemonArguments.parse(sys.argv[1:])
    if arguments is not None:
        from snapfs.commands.mounting import daemon_process

        daemon_process.main(arguments)
    from snapfs.commands.cli import main

    main()
