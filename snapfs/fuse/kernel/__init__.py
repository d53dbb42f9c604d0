"""The connection to the kernel: mount, handshake, router, notifications."""
