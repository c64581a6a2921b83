"""Certificates in Secrets, which they are read from by name, and written to whole."""

import base64
import binascii
from typing import Final

from cloudprovider.core.api.kubernetes import Secret
from cloudprovider.core.errors import ConfigurationError

CERT_MANAGER: Final = "cert-manager.io/certificate-name"
"""What cert-manager notes on every Secret that it fills: the name of the Certificate."""


def is_kept_by_cert_manager(secret: Secret) -> bool:
    """Whether cert-manager renews what is in there, so that nobody else may."""
    return CERT_MANAGER in secret.metadata.annotations


def content(secret: Secret, key: str, where: str) -> bytes:
    """Return what stands under ``key``; ``where`` names the Secret. Raises ConfigurationError."""
    try:
        return base64.b64decode(secret.data[key], validate=True)
    except KeyError as e:
        raise ConfigurationError(f"{where} lacks {key}: issue the certificate anew") from e
    except binascii.Error as e:
        raise ConfigurationError(f"{where}: {key} is not base64: issue the certificate anew") from e


def text(value: bytes) -> str:
    """As a Secret's ``data`` has it."""
    return base64.b64encode(value).decode()
