"""Looking into a trained run: what its codes hold, and what its decoder makes of them."""
