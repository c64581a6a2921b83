"""Traces by OpenTelemetry. Nothing of it is imported unless it is configured."""
