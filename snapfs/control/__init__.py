"""The control plane of a mount: commands, status and the service behind them. No FUSE."""
