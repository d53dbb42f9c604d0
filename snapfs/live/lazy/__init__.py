"""Live trees whose files come later: materialized from a source, or changed in place."""
