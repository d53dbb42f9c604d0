"""The command line of the replicator."""
