"""Requests of the kernel, answered from the live tree or from a snapshot."""
