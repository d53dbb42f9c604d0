"""What seal, restore and lazy mounts share."""
