"""The steps of mounting and unmounting that the commands are made of."""
