"""Property tests of the core judge answers, never speed: no hypothesis deadline on a busy machine."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
