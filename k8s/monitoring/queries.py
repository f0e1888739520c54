"""PromQL that several dashboards share, restricted by their variables."""

from __future__ import annotations

IN = 'namespace=~"$namespace"'
POD = f'{IN},relevance_tiers_track=~"$track",pod=~"$pod"'
RATE = "$__rate_interval"


def rate(name: str, by: str, *matchers: str) -> str:
    """Give the rate of a counter, summed."""
    return f"sum by ({by}) (rate({name}{{{','.join((POD, *matchers))}}}[{RATE}]))"


def total(name: str, *matchers: str) -> str:
    """Give the rate of a counter over all its labels."""
    return f"sum(rate({name}{{{','.join((POD, *matchers))}}}[{RATE}]))"


def answered() -> str:
    """Give the rate of requests that were answered with scores."""
    return total("relevance_items_per_request_count")


def quantile(q: float, name: str, by: str = "", *matchers: str) -> str:
    """Give a quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q:g}, {rate(f'{name}_bucket', labels, *matchers)})"


def quantiles(name: str, *matchers: str) -> tuple[tuple[str, str], ...]:
    """Give the legend and query of the median, p95 and p99 of a histogram."""
    return tuple((f"p{100 * q:g}", quantile(q, name, "", *matchers)) for q in (0.5, 0.95, 0.99))


def by_pod(name: str) -> tuple[tuple[str, str], ...]:
    """Give a gauge of each replica."""
    return (("{{pod}}", f"{name}{{{POD}}}"),)
