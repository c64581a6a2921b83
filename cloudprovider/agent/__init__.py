"""The agent program, one per host node: VIPs and the kernel."""
