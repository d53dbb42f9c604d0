"""The volumes of a mirror: locks, generations, and who reads."""
