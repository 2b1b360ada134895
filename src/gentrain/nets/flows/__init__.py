"""Invertible parts with log-determinants, and what normalising flows are composed of them."""
