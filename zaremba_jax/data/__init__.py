"""Texts: vocabulary, files, encoding, windows, and the corpora that are known by name."""
