"""The console in the lab: on the host's network, for browsers on this machine, which are outside of the sandbox.

A socket keeps the network namespace that it was made in. So the one that browsers connect to is made outside and handed
in, and what comes by it is passed on to the console inside.
"""

import contextlib
import socket
import sys
import threading
from typing import Final

from tests.lab.lab import Lab
from tests.lab.network import Namespace
from tests.lab.process import Process
from tests.lab.programs import PORTS, ROOT

CONSOLE_PORT: Final = 8090
ACCOUNT: Final = "operator"
"""A ServiceAccount of the host cluster, in the namespace default, who may do everything there."""


def start_console(lab: Lab, stack: contextlib.ExitStack, door: socket.socket) -> None:
    """Start the console, with an account to sign in by, and pass on to it what connects to ``door``."""
    plane, host = lab.host_plane, lab.host_node.namespace
    plane.kubectl("create", "serviceaccount", ACCOUNT)
    plane.kubectl(
        "create", "clusterrolebinding", ACCOUNT, "--clusterrole=cluster-admin", f"--serviceaccount=default:{ACCOUNT}"
    )
    address, port = door.getsockname()
    process = Process(
        "console",
        [
            *(sys.executable, "-m", "cloudprovider.cli.main", "console"),
            *(f"--api-server={plane.url}", f"--api-server-ca={plane.ca}"),
            *(f"--console-address=127.0.0.1:{CONSOLE_PORT}", f"--public-url=http://{address}:{port}"),
            f"--agent-metrics=http://127.0.0.1:{PORTS['agent']}/metrics",
        ],
        log=lab.logs / "program-console.log",
        namespace=host.name,
        environment={"PYTHONPATH": str(ROOT)},
    )
    stack.callback(process.terminate)
    process.start()
    process.wait_until("listening", lambda: _listens(host))
    threading.Thread(target=_pass_on, args=(door, host), daemon=True).start()


def _connect(host: Namespace) -> socket.socket:
    return host.call(lambda: socket.create_connection(("127.0.0.1", CONSOLE_PORT), timeout=5))


def _listens(host: Namespace) -> bool:
    _connect(host).close()
    return True


def _pass_on(door: socket.socket, host: Namespace) -> None:
    while True:
        outside, _ = door.accept()
        try:
            inside = _connect(host)
        except OSError:
            outside.close()
            continue
        inside.settimeout(None)
        for source, target in ((outside, inside), (inside, outside)):
            threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
