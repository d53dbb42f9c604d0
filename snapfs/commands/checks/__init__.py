"""The checks of `snapfs doctor`."""
