from snapfs.api.async_volume import AsyncFork as AsyncFork
from snapfs.api.async_volume import AsyncVolume as AsyncVolume
from snapfs.api.volume_handle import Fork as Fork
from snapfs.base.errors import BusyError as BusyError
from snapfs.base.errors import CorruptionError as CorruptionError
from snapfs.base.errors import SnapfsError as SnapfsError
from snapfs.base.errors import SnapshotError as SnapshotError
from snapfs.base.errors import UserError as UserError

__version__: str
