"""Objectives that two or more papers use: pure functions with named terms, computed in float32."""
