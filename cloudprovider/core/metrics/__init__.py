"""Every metric of every program: name, type, labels, help and bounds. Nothing else defines one."""
