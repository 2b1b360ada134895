"""Training: players, turns, the clock, checkpoints. The only folder that imports Lightning."""
