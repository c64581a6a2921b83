"""Health probes: what a node or a machine answers from where this host stands on its network."""
