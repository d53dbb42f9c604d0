"""Repair of the store from the live tree and from targets."""
