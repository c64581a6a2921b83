"""Typed Kubernetes objects: just the fields that this project reads or writes.

Our own kinds are complete; the CustomResourceDefinitions are generated from them (``cloudprovider crds``).
"""
