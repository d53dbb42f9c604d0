"""What all programs share: units, errors, settings, policies, limits, and the files of a volume."""
