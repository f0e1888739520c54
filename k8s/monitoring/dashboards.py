"""The six dashboards, in the order in which somebody who was paged opens them."""

from __future__ import annotations

from k8s.monitoring.relevance_boards import RELEVANCE, SHADOW
from k8s.monitoring.service_boards import BATCHER, ENGINE, GOLDEN
from k8s.monitoring.slo_board import SLO

DASHBOARDS = (SLO, GOLDEN, BATCHER, ENGINE, RELEVANCE, SHADOW)
