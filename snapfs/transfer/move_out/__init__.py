"""Moving out: a snapshot as a tar archive."""
