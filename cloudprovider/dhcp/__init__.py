"""A DHCPv4 client for many leases on one link (RFC 2131): codec and state machine are pure, one socket is outside."""
