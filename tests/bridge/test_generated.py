"""The generated code is what the proto file says, and the proto file documents what it defines."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from cloudprovider.bridge.v1 import bridge_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]


def test_fresh(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "proto/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    for made in sorted((tmp_path / "cloudprovider/bridge/v1").iterdir()):
        committed = ROOT / made.relative_to(tmp_path)
        assert committed.read_text() == made.read_text(), f"{committed} is stale: run python proto/generate.py"


def test_every_message_is_documented() -> None:
    lines = (ROOT / "proto/cloudprovider/bridge/v1/bridge.proto").read_text().splitlines()
    messages: Mapping[str, Descriptor] = pb.DESCRIPTOR.message_types_by_name
    for name in [*messages, *pb.DESCRIPTOR.enum_types_by_name]:
        at = next(i for i, line in enumerate(lines) if line.startswith((f"message {name} ", f"enum {name} ")))
        assert lines[at - 1].startswith("//"), name
