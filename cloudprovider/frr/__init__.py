"""Runs FRR's daemons inside a network's namespace."""
