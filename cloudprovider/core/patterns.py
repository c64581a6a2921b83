"""What the names look like that a guest or a user may send: of objects, networks, projects, hosts, labels."""

import re
from typing import Final

_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = rf"{_LABEL}(\.{_LABEL})*"
_HOST_LABEL: Final = r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"

LABEL: Final = re.compile(_LABEL)
"""A namespace, a Service (RFC 1123 label)."""
SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_SUBDOMAIN}")
"""A pool (RFC 1123 subdomain)."""
NETWORK: Final = re.compile(rf"{_LABEL}/(?=.{{1,63}}\Z){_SUBDOMAIN}")
""" "namespace/name" of a network."""
PROJECT: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62}/[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")
"""Rancher's "c-xxx/p-yyy"."""
SERVICE: Final = re.compile(rf"{_LABEL}/{_LABEL}")
""" "namespace/name" of a Service; at most 127 characters."""
HOSTNAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_HOST_LABEL}(\.{_HOST_LABEL})*")
"""A host's name (RFC 1123, section 2.1): letters, digits and hyphens, 63 a label, 253 in all."""
_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
LABEL_KEY: Final = re.compile(rf"((?=[^/]{{1,253}}/){_SUBDOMAIN}/)?{_NAME}")
"""A label's key: a name of up to 63 characters, perhaps with a domain before it."""
LABEL_VALUE: Final = re.compile(rf"({_NAME})?")
"""A label's value: up to 63 characters, or none."""
