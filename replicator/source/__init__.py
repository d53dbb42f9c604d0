"""The volume that an agent pushes from."""
