"""Backing files of the live tree, and the health of the filesystem that holds them."""
