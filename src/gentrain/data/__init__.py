"""Data sets, the order they are read in, and the stream of batches. Nothing is imported here."""
