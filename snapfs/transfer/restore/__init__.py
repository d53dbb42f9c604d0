"""Snapshots put back: restore, rebuild, rollback, clone."""
