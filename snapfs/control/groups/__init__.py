"""A mount as a member of a group of mounts that are cut at one instant."""
