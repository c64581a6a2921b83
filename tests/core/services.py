"""Services as an API server hands them out, and what is refused of them."""

from typing import Any

import msgspec
import pytest

from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.translate import translate

WEB = {"name": "web", "port": 80, "nodePort": 30080}


def service(annotations: dict[str, str] | None = None, **spec: Any) -> Service:
    body = {
        "metadata": {"namespace": "shop", "name": "web", "uid": "u1", "annotations": annotations or {}},
        "spec": {"type": "LoadBalancer", "ports": [WEB], "ipFamilies": ["IPv4"], **spec},
    }
    return msgspec.convert(body, Service)


def refused(annotations: dict[str, str] | None = None, **spec: Any) -> tuple[Violation, ...]:
    with pytest.raises(InvalidRequest) as caught:
        translate(service(annotations, **spec))
    return caught.value.violations


def only(violations: tuple[Violation, ...]) -> Violation:
    (violation,) = violations
    return violation
