"""The gates that a snapshot passes on its way to being trusted: verified, replicated, drilled."""
