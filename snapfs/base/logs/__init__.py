"""The log of a process: its format, and what a line of JSON has."""
