"""Metrics of a running server, as Prometheus reads them."""

import asyncio
import urllib.request
from typing import TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from service.server import Server

Metrics: TypeAlias = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values of samples by name and labels."""


async def scrape(server: Server) -> Metrics:
    """Return the metrics that a server of this process exposes."""
    return await scrape_address(str(server.metrics_address))


async def scrape_address(address: str) -> Metrics:
    """Return the metrics that are exposed at an address."""

    def fetch() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
            return str(response.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(fetch))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples with these labels."""
    return sum(value for (found, has), value in metrics.items() if found == name and set(labels.items()) <= has)
