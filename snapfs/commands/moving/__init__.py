"""Moving a state directory into a volume, and a snapshot out of one."""
