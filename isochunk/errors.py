"""Every error isochunk raises on purpose.

A message says what was got, what was wanted and what to do about it.
"""


class IsochunkError(Exception):
    """Base of all errors raised by isochunk."""


class UsageError(IsochunkError, ValueError):
    """The caller asked for something that cannot be done; nothing was written."""


class GeometryError(UsageError):
    """A box, spacing, factor or offset does not fit the grids involved."""


class ModelError(UsageError):
    """A model cannot be found, trusted, loaded or used for this volume."""


class TargetConflictError(UsageError):
    """The target already holds another job or foreign data."""


class PredictionError(IsochunkError):
    """A model ran but its answer cannot be stored (NaN, wrong shape)."""


class DeviceError(IsochunkError):
    """A GPU is lost to this process; another process may use it, or another GPU."""


class StorageError(IsochunkError):
    """Reading or writing storage failed after retries."""


class NotFoundError(StorageError, UsageError):
    """Nothing is stored at the URL."""


class AccessError(StorageError, UsageError):
    """Storage refused: credentials are missing, expired or not sufficient."""


class CorruptDataError(StorageError):
    """Storage returned bytes that do not decode."""


class StorageTimeoutError(StorageError):
    """Storage did not answer within the time allowed."""


class ClusterError(IsochunkError):
    """The Dask cluster went away while a job ran; the same command resumes."""


def may_pass(error: Exception) -> bool:
    """Tell whether what failed may succeed when it is tried again later."""
    passing = isinstance(error, (StorageError, MemoryError, DeviceError))
    return passing and not isinstance(error, UsageError)
