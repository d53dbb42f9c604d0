"""Groups: several volumes of this host that are cut at one instant."""
