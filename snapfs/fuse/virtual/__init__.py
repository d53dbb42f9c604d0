"""The virtual files under .snapfs: control, status, metrics, snapshots to browse."""
