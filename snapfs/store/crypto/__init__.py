"""Encryption of what leaves the host, and its keys."""
