"""The host program: bridge server, address management."""
