"""The settings of a volume, and the pure rules that read them."""
