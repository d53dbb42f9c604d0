"""What several commands need: finding a volume, checking settings, printing."""
