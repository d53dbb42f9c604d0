"""The subcommands, one file for each kind of thing a user comes for."""
