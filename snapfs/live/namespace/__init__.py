"""Names and attributes: operations, frozen views, replies kept for requests sent again."""
