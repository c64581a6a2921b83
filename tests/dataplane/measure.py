"""What watching nodes costs: ``PYTHONPATH=. tests/lab/sandbox python tests/dataplane/measure.py``.

Prints one line a figure. All other figures of the data plane: ``make bench-dataplane``.
"""

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.segment import HostDataPlane
from tests.dataplane.lan import CONFIG, Station, bridge, station, until


async def watch(dataplane: HostDataPlane, neighbour: Station) -> None:
    """Nodes of both families, all of them addresses of one machine: what learning and confirming them costs."""
    families: dict[str, Callable[[int], IPAddress]] = {
        "IPv4": lambda i: IPv4Address("10.98.0.1") + i,
        "IPv6": lambda i: IPv6Address("fd98::1") + i,
    }
    for family, address in families.items():
        everybody = [address(i) for i in range(5000)]
        neighbour.take_all(everybody)
        for count in (1000, 5000):
            segment = await dataplane.open(CONFIG)
            start, spent = time.perf_counter(), time.process_time()
            segment.nodes.follow(everybody[:count])
            await until(lambda: len(segment.nodes.known) == count, "all are known", 60.0)  # noqa: B023
            took, spent = time.perf_counter() - start, time.process_time() - spent
            print(f"{f'{count} {family} nodes learnt':58} {took * 1000:9.1f} ms   CPU {spent * 1000:9.1f}")
            await asyncio.sleep(10)
            start, spent = time.perf_counter(), time.process_time()
            await asyncio.sleep(30)
            share = (time.process_time() - spent) / (time.perf_counter() - start)
            assert len(segment.nodes.known) == count
            print(f"{f'{count} {family} nodes confirmed, share of a core':58} {share * 100:9.2f} %")
            await segment.close()
    await dataplane.remove("")


async def main() -> None:
    with station("neighbour", "10.99.0.77") as neighbour:
        await watch(HostDataPlane("bench"), neighbour)


if __name__ == "__main__":
    with bridge():
        asyncio.run(main())
