"""What the snapshots of a store hold together: paths over time, and the bytes that each needs."""
