"""Where snapshots are read from: mirrors, folders, buckets."""
