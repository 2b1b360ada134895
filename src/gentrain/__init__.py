"""gentrain: a command-line experiment runner for generative models."""

__version__ = "0.1.0"
