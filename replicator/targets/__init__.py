"""Places that snapshots are pushed to, each behind the interface of target.py."""
