"""The repository: transactions, compaction, recovery."""
