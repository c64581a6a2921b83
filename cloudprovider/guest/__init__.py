"""The guest program: Services of the guest cluster, to and from the bridge."""
