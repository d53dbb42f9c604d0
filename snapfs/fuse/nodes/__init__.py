"""Node ids, modes, ACLs and attributes."""
