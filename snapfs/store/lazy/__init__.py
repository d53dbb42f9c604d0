"""Stores whose objects come later, fetched when they are read."""
