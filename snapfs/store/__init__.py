"""The past: immutable snapshots. Usable from any process; nothing of the live tree."""
