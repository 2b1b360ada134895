"""Families: which players there are and how to sample. A paper hands them its networks and terms as values."""
