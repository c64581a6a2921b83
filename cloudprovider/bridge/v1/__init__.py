"""Generated from proto/cloudprovider/bridge/v1/bridge.proto."""
