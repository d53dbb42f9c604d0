"""The door: requests of the kernel, answered from the live tree or from a snapshot."""
