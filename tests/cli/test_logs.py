"""Log lines: one JSON object each, with fields, and no secrets."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from cloudprovider.cli import logs

KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


class Lines:
    """What has been logged."""

    def __init__(self, format_: logs.Format, level: logs.Level = "info") -> None:
        self.stream = io.StringIO()
        logs.setup(level, format_, self.stream)

    def text(self) -> str:
        return self.stream.getvalue()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


def test_an_event_is_one_object_with_its_fields() -> None:
    lines = Lines("json")
    logging.getLogger("a.b").info("Address given", extra={"pool": "p", "address": ip_address("192.0.2.1"), "count": 3})
    (event,) = lines.events()
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "info",
        "logger": "a.b",
        "message": "Address given",
        "pool": "p",
        "address": "192.0.2.1",
        "count": 3,
    }


def test_newlines_do_not_break_the_line() -> None:
    lines = Lines("json")
    logging.getLogger().warning("two\nlines %s", "a\nb", extra={"field": "c\nd"})
    (event,) = lines.events()
    assert event["message"] == "two\nlines a\nb"


def test_an_exception_is_compact_and_keeps_its_cause() -> None:
    lines = Lines("json")
    try:
        try:
            dict[str, int]()["x"]
        except KeyError as e:
            raise ValueError("bad input") from e
    except ValueError:
        logging.getLogger().exception("It failed")
    (event,) = lines.events()
    assert event["error"] == "ValueError: bad input <- KeyError: 'x'"
    assert "test_logs.py" in event["trace"][0]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def b64url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


JWT = ".".join([b64url('{"alg":"RS256"}'), b64url('{"sub":"system"}'), "hunter2-abc"])


@pytest.mark.parametrize("format_", ["json", "text"])
@pytest.mark.parametrize(
    "extra",
    [
        {"token": "hunter2-abc"},
        {"password": "hunter2-abc"},
        {"client_secret": "hunter2-abc"},
        {"client-key-data": "hunter2-abc"},
        {"nested": {"Authorization": "hunter2-abc"}},
        {"nested": [{"Proxy-Authorization": "hunter2-abc"}]},
        {"headers": ["Bearer hunter2-abc"]},
        {"request": "GET / Authorization: Bearer hunter2-abc"},
        {"said": f"the token is {JWT}."},
    ],
)
def test_secrets_never_come_out(format_: logs.Format, extra: dict[str, Any]) -> None:
    lines = Lines(format_)
    logging.getLogger().error("Sent", extra=extra)
    assert "hunter2" not in lines.text()
    assert "redacted" in lines.text()


@pytest.mark.parametrize("kind", ["", "RSA ", "EC "])
def test_keys_in_base64_and_basic_credentials_never_come_out(kind: str) -> None:
    pem = b64(f"-----BEGIN {kind}PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n")
    basic = b64("admin:hunter2-abc")
    lines = Lines("json")
    logging.getLogger().error("client-key-data: %s", pem, extra={"header": f"Basic {basic}"})
    (event,) = lines.events()
    assert event["message"] == "client-key-data: [redacted]"
    assert event["header"] == "Basic [redacted]"


@pytest.mark.parametrize("format_", ["json", "text"])
def test_private_keys_never_come_out(format_: logs.Format) -> None:
    lines = Lines(format_)
    try:
        raise ValueError(f"can't read {KEY}")
    except ValueError as e:
        logging.getLogger().exception("Not a certificate: %s", KEY, extra={"file": KEY, "raw": KEY.encode(), "e": e})
    assert "MIGHAg" not in lines.text()


@pytest.mark.parametrize(
    "extra",
    [
        {"key": "('shops', 'web')"},
        {"address_key": "abc"},
        {"keys": 3},
        {"fencing_token": 7},
        {"resume_token": "r-17"},
        {"client_key": "/etc/cloudprovider/bridge/tls.key"},
        {"secret_name": "cloudprovider-bridge"},
        {"private_network": "10.0.0.0/8"},
        {"credentials": "kubeconfig"},
        {"certificate": b64("-----BEGIN CERTIFICATE-----\nMIIB\n")},
        {"said": "the bearer of this has Basic rights, see a.b.c"},
    ],
)
def test_what_is_no_secret_stays(extra: dict[str, Any]) -> None:
    lines = Lines("json")
    logging.getLogger().info("Queued", extra=extra)
    (event,) = lines.events()
    assert {name: event[name] for name in extra} == extra


def test_text_is_for_people() -> None:
    lines = Lines("text")
    logging.getLogger("x").info("Address given", extra={"pool": "my pool", "n": 1})
    assert lines.text().rstrip().endswith('INFO    Address given pool="my pool" n=1')


def test_levels_hold_and_warnings_are_logged() -> None:
    lines = Lines("json", "warning")
    logging.getLogger("x").info("hidden")
    logging.getLogger("x").warning("shown")
    assert [e["message"] for e in lines.events()] == ["shown"]


def test_auto_is_json_where_there_is_no_terminal() -> None:
    lines = Lines("auto")
    logging.getLogger().info("x")
    assert lines.events()[0]["message"] == "x"
