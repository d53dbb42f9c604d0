"""Contents of files: dirty blocks, preserved blocks, intents, residency."""
