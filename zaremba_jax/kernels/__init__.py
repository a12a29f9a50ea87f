"""Recurrent layers with hand-written backward passes."""
