"""Errors of a cluster."""


class ClusterError(RuntimeError):
    """Processes cannot work together; the message names the process, the cause and the remedy."""


class ClusterSettingError(ValueError):
    """A setting of the cluster is missing or out of range; the message says what is allowed."""
