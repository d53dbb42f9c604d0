"""Fencing, claims, standby, and the throttle of bounded replication."""
