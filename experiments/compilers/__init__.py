"""What `experiments.compile_for` is made of."""
