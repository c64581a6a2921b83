"""The API servers: typed objects, watch, work queue, patches, leases, events."""
