"""Between a supervisor and its daemons: the channel, the state that outlives a daemon, when to start another."""
