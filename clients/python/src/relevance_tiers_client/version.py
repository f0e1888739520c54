"""The version of this client, its own and not the service's."""

__version__ = "0.1.0"
