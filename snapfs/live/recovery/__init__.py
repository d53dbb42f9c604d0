"""What opening a live tree repairs: everything that the last process left half done."""
