"""Load balancers for Kubernetes clusters that run in virtual machines on a Harvester host cluster."""

__version__ = "0.1.0"
