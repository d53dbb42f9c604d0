"""The agent: what it pushes to each target, and how fast."""
