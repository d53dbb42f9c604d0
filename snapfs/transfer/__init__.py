"""Between present and past: seal, restore, roll back, clone, hydrate."""
