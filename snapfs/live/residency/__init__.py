"""Which chunks of a partly present file are in its backing file, and which of them are durable."""
