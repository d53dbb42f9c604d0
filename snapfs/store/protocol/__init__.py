"""The wire protocol of mirrors."""
