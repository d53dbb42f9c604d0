"""A volume on disk: folder, identity, lock."""
