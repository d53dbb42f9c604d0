"""From a cut to a sealed snapshot."""
