"""Networks that two or more papers use: plain modules, and architectures that build them for a role."""
