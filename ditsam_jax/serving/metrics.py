"""Prometheus metrics, served at /metrics."""

from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
  """Metrics of one service, in their own registry."""

  def __init__(self) -> None:
    self.registry = registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    self._requests = Counter('ditsam_requests', 'Requests answered', ['route', 'method', 'status'], registry=registry)
    self._seconds = Histogram(
      'ditsam_request_seconds', 'Time from head to answer', ['route'], buckets=_SECONDS, registry=registry
    )
    self._sizes = Histogram(
      'ditsam_batch_prompts', 'Prompts per batch', buckets=(1, 2, 3, 4, 6, 8, 16, 32, 64), registry=registry
    )
    self._waits = Histogram('ditsam_queue_seconds', 'Waiting time of prompts', buckets=_SECONDS, registry=registry)
    self._alone = Counter('ditsam_prompts_alone', 'Prompts run one by one, not as a batch', registry=registry)
    self._images = Counter('ditsam_images_found', 'Lookups of stored images', ['found'], registry=registry)

  def request(self, route: str, method: str, status: int, seconds: float) -> None:
    """Counts an answered request; `route` is a template, not a path."""
    self._requests.labels(route, method, str(status)).inc()
    self._seconds.labels(route).observe(seconds)

  def batch(self, size: int, at_once: int, waited: list[float]) -> None:
    """Counts a batch; `waited` are its prompts' waiting times in seconds."""
    self._sizes.observe(size)
    for seconds in waited:
      self._waits.observe(seconds)
    if at_once == 1:
      self._alone.inc(size)

  def image(self, found: bool) -> None:
    """Counts a lookup of an image."""
    self._images.labels(str(found).lower()).inc()

  def watch(self, name: str, meaning: str, value: Callable[[], float]) -> None:
    """Adds a gauge that calls `value` when read."""
    Gauge(f'ditsam_{name}', meaning, registry=self.registry).set_function(value)

  def page(self) -> bytes:
    """Returns all metrics in Prometheus' text format."""
    return prometheus_client.generate_latest(self.registry)
