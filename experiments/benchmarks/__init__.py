"""What `experiments.benchmark` is made of."""
