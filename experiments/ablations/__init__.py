"""What `experiments.ablation` is made of."""
