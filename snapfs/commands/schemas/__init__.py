"""The form of what the commands print with --json, of `.snapfs/status`, of the control file's replies and of logs."""
