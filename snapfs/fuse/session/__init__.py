"""A FUSE session, and the operations that it serves."""
