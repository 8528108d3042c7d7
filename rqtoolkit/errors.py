"""Errors that a user can mend; the command line prints them in one line and exits with 2.

Every message names the place, the argument, what was given, what is accepted and the next step.
"""

__all__ = [
    "ArtifactError",
    "ConfigError",
    "DataError",
    "MissingDependencyError",
    "RQToolkitError",
    "ShapeError",
]


class RQToolkitError(Exception):
    """Base of everything this library raises on purpose."""


class ShapeError(RQToolkitError, ValueError):
    """An array or tensor has the wrong number of axes or the wrong sizes."""


class DataError(RQToolkitError, ValueError):
    """Values or dtype of the data are not usable: NaN, infinite, too few rows, out of range."""


class ConfigError(RQToolkitError, ValueError):
    """An argument or configuration value is unknown or out of its range."""


class ArtifactError(RQToolkitError):
    """A file is missing, unreadable, truncated, foreign, or does not match what it should hold."""


class MissingDependencyError(RQToolkitError, ImportError):
    """An optional package is not installed; the message says which to install."""
