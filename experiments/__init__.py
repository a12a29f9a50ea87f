"""Command-line programs over `zaremba_jax`: flags, files, progress, figures."""
