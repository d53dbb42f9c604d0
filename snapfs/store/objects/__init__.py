"""Objects and the segments that hold them."""
