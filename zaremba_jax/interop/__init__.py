"""Models for other programs: files, Flax, torch, StableHLO."""
