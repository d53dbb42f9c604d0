"""The warm start: a process with everything imported, of which the daemons of mounts are forked."""
