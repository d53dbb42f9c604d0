"""Objects that come from elsewhere, checked on their way in."""
