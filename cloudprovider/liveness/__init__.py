"""Watches the other hosts on a network, to learn of a host's death within a fraction of a second."""
