"""Ends of a program before its time that are no fault of its code."""


class ProgramEndError(Exception):
    """Ends a program with its message as one line; caught once, by `program.run`.

    Attributes:
      status: the exit status.
      is_error: whether the line is an error, for standard error, or a plain line of output.
    """

    status: int = 1
    is_error: bool = True
