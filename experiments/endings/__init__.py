"""What ends a program early: Ctrl-C, a signal, an error that it tells in one line."""
