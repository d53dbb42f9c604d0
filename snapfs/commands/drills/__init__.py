"""Drills: a snapshot is mounted in a scratch place, and a check of the application says whether it recovers."""
