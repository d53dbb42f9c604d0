"""Mounting from a replica: usable at once, hydrated in the background."""
