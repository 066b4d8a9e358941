"""The contracts that tools announce: the registry, and contracts with compiled schemas."""
