"""Speaks BGP to routers: says which of the load balancers' addresses this host forwards."""
