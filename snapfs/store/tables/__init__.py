"""Tables of inodes and directories: what a snapshot is made of."""
