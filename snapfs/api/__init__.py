"""The package surface for Python programs: `snapfs.Volume` and what comes with it."""
