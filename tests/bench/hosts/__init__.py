"""How a host's death, and its drain, looks to clients; beside peers in the same lab."""
