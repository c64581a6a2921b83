"""``kubectl lb``: what the load balancers are doing, for people and for programs."""
