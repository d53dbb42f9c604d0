"""The layout of a volume in an object store."""
