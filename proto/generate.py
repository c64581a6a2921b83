"""Generate the bridge's messages and typed stubs from the proto file: ``python proto/generate.py``.

They are committed under ``cloudprovider/bridge/v1``; ``tests/bridge/test_generated.py`` checks that they are fresh.
"""

import importlib.resources
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = "cloudprovider/bridge/v1/bridge.proto"


def generate(out: Path) -> None:
    """Write the generated modules below ``out``, as ``cloudprovider/bridge/v1/*``."""
    scripts = Path(sysconfig.get_path("scripts"))
    includes = importlib.resources.files("grpc_tools") / "_proto"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
            f"-I{ROOT / 'proto'}",
            f"-I{includes}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            PROTO,
        ],
        check=True,
    )
    package = out / Path(PROTO).parent
    (package / "__init__.py").write_text('"""Generated from proto/cloudprovider/bridge/v1/bridge.proto."""\n')


if __name__ == "__main__":
    generate(ROOT)
