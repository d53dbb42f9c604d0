"""What is done around a cut, for applications: hooks before and after it."""
