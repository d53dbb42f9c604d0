"""The audit trail of a volume: what proves that it was not rewritten."""
