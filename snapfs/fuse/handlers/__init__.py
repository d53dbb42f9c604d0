"""Handlers of kernel requests, by what they are about."""
