"""The paper's table 1: which models it needs, their averages, and its page."""
