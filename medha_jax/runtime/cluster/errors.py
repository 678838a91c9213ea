"""What can go wrong between processes."""


class ClusterError(RuntimeError):
    """Processes cannot work together; the message says which one, why, and what to do."""


class ClusterSettingError(ValueError):
    """A setting of the cluster is missing or out of range; the message says what is allowed."""
