"""Moving in: a plain directory, in use or not, becomes a volume."""
