"""Client of the relevance-tiers service: one query and its items in, calibrated scores and tiers out."""

from relevance_tiers_client.client import AsyncClient, Client
from relevance_tiers_client.errors import (
    DeadlineError,
    InvalidRequestError,
    NoConnectionError,
    NotReadyError,
    OverloadedError,
    ProblemError,
    RelevanceApiError,
    ServerFailureError,
    UnauthorisedError,
)
from relevance_tiers_client.models import (
    Counts,
    CutPoints,
    FilteredId,
    Info,
    Item,
    Limits,
    Result,
    ScoreOptions,
    ScoreResponse,
    Timing,
    Usage,
)
from relevance_tiers_client.version import __version__

__all__ = [
    "AsyncClient",
    "Client",
    "Counts",
    "CutPoints",
    "DeadlineError",
    "FilteredId",
    "Info",
    "InvalidRequestError",
    "Item",
    "Limits",
    "NoConnectionError",
    "NotReadyError",
    "OverloadedError",
    "ProblemError",
    "RelevanceApiError",
    "Result",
    "ScoreOptions",
    "ScoreResponse",
    "ServerFailureError",
    "Timing",
    "UnauthorisedError",
    "Usage",
    "__version__",
]
