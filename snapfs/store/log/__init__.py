"""The log of snapshots, and what is recorded beside it: holds, claims, drops, locks."""
