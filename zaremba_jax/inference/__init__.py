"""What a trained model is used for: generating, scoring, and adapting to a text."""
