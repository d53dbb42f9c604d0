"""The processes of a mount: the daemon, its supervisor, and the abort of a stuck connection."""
