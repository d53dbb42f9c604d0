"""The replicator: ships snapshots to mirrors."""
