"""Verification of a store, and repair of what is damaged."""
