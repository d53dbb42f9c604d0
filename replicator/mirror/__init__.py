"""The mirror: a server that volumes are pushed to and read from."""
