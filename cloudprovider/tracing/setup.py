"""Whether there are traces, and where they go: by the environment variables that OpenTelemetry defines."""

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.tracing import NO_TRACER, Tracer

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def endpoint(environment: Mapping[str, str]) -> str:
    """Return where traces go, "" where there are none. Raises ConfigurationError for a protocol that is not spoken."""
    found = next((value for name in ENDPOINTS if (value := environment.get(name, ""))), "")
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not found or disabled or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return ""
    for name in PROTOCOLS:
        if environment.get(name, "grpc") != "grpc":
            raise ConfigurationError(
                f"{name}={environment[name]}: traces go out by OTLP over gRPC only; set it to grpc, and"
                f" {ENDPOINTS[1]} to the collector's port for that (usually 4317)"
            )
    return found


@asynccontextmanager
async def traced(
    program: str, version: str, environment: Mapping[str, str], *, rng: random.Random
) -> AsyncIterator[Tracer]:
    """The tracer of a program while it runs. Raises ConfigurationError where traces are asked for and can't be had."""
    where = endpoint(environment)
    if not where:
        yield NO_TRACER
        return
    try:
        from cloudprovider.tracing.otel import opened  # noqa: PLC0415 - costs memory, and may not be installed
    except ImportError as error:
        raise ConfigurationError(
            f"{ENDPOINTS[1]} asks for traces, and {error.name} is not installed: pip install cloudprovider[traces],"
            " or unset it"
        ) from error
    async with opened(program, version, where, rng=rng) as tracer:
        yield tracer
