"""The present: what the application sees. No I/O scheduler in here, and nothing of the store."""
