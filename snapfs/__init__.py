"""snapfs: a filesystem for state directories, with crash-consistent snapshots and replicas."""

__version__ = "0.1.0"
