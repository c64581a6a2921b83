"""The kernel: engine seam, nftables, network namespaces, announcing, conntrack, and the shipped fake."""
