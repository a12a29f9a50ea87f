"""Errors for what the caller can mend: the message names the value, the reason and the remedy.

Programs show these in one line. Every other exception is a fault of the code, and keeps its
traceback.
"""


class InputError(ValueError):
    """A setting, a text, a file or an argument cannot be used as it is."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that was named, or that belongs to what was named, is not there."""


class DownloadError(InputError, ConnectionError):
    """A file is not there and could not be downloaded."""
