"""The write-intent log: which blocks of which files have changed since the last snapshot, recoverable after a crash."""
