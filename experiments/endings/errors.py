"""An error by which a program ends as it should."""


class ProgramEndError(Exception):
    """Ends a program with its message as one line, unless it goes on without what failed."""

    status: int = 1  # the exit status
    is_error: bool = True  # for standard error; otherwise a plain line of output
