"""The shared core: what the offline and online worlds must agree on (numpy, pydantic, tokenizers; no torch, no web)."""

__version__ = "0.1.0"
