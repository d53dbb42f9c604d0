"""The namespace's database: schema, write-ahead log, checksums, and room kept for it."""
