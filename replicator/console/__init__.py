"""The console of a mirror: pages about every volume that is pushed there, and the acts of an administrator."""
