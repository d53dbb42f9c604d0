"""Forks of volumes: made and mounted, found again, and discarded."""
