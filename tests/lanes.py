"""Run all tests: ``python -m tests.lanes``, two lanes beside each other, each in a sandbox of its own.

Most tests wait for something most of the time, so two lanes take little more than half as long as one. The first lane
is what starts whole systems; its output is shown as it comes, the other one's when it has ended. Both take about as
long, by the sums of what ``--durations=0`` tells.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
SANDBOX: Final = ROOT / "tests" / "lab" / "sandbox"
SYSTEMS: Final = ("tests/manifests", "tests/lab", "tests/upgrade", "e2e")
LOG: Final = ROOT / "build" / "test.log"


def pytest(*places: str) -> list[str]:
    return [str(SANDBOX), sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *places]


def main() -> int:
    others = sorted(
        f"tests/{place.name}"
        for place in (ROOT / "tests").iterdir()
        if any(place.rglob("test_*.py")) and f"tests/{place.name}" not in SYSTEMS
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("w", encoding="utf-8") as log:
        beside = subprocess.Popen(pytest(*others), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            shown = subprocess.run(pytest(*SYSTEMS), cwd=ROOT, check=False).returncode
            if beside.poll() is None:
                print(f"waiting for the other lane: {', '.join(others)}", flush=True)
            hidden = beside.wait()
        finally:
            beside.terminate()  # the sandbox ends with all that is in it
            beside.wait()
    sys.stdout.write(LOG.read_text(encoding="utf-8"))
    print(f"both lanes took {time.monotonic() - began:.0f} s")
    return shown or hidden


if __name__ == "__main__":
    sys.exit(main())
