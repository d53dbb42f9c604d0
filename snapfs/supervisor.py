"""The supervisor under the name that earlier versions had for it.

Before `snapfs upgrade` a running one finds out by this name which state the installed snapfs can go on with.
"""

from snapfs.daemon.supervision.supervisor_state import STATE

__all__ = ["STATE"]
