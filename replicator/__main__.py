"""`python -m replicator`."""

from replicator.commands.replicator_cli import main

if __name__ == "__main__":
    main()
