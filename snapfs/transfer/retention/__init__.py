"""What stays and what goes: who may still need a snapshot, holds of people, drops by rule."""
