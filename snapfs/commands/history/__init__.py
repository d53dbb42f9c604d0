"""Commands that read a history: what a path was, what snapshots hold."""
