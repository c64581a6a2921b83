"""The gRPC bridge between a guest cluster and its host: client, server, tenants' identity."""
