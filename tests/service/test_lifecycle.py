"""Phases of the process that only an odd moment or an unexpected error reach."""

from __future__ import annotations

import asyncio
import gc

import pytest

from relevance.errors import ReloadError
from service import lifecycle
from service.lifecycle import EXIT_NOT_STARTED, Service
from service.settings import Settings
from service.telemetry import Telemetry


@pytest.fixture
def ends():
    """What a service told of its end: status and reason."""
    return []


@pytest.fixture
def service(tiny_bundle, ends):
    """A service that has not been started."""
    made = Service(Settings(bundle=tiny_bundle), Telemetry(), lambda status, reason: ends.append((status, reason)))
    yield made
    made.stop()
    gc.unfreeze()


def test_an_error_of_a_library_ends_the_start_as_one_of_ours_does(service, ends, monkeypatch, caplog):
    """An allocation that failed in a forward pass, say: status 2, a reason with the error's kind, and its traceback."""

    def broken(_settings):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(lifecycle, "load_model", broken)
    asyncio.run(service.start())

    assert ends == [(EXIT_NOT_STARTED, "RuntimeError: out of memory")]
    assert (service.phase, service.alive, service.started.is_set()) == ("failed", False, True)
    assert "Traceback" in caplog.text


def test_an_error_of_a_library_refuses_a_reload_and_changes_nothing(service, monkeypatch):
    """409 with the reason, counted, and what was served is served on."""

    async def history() -> None:
        await service.start()
        before = service.model

        def broken(*_):
            raise MemoryError("no room for two")

        monkeypatch.setattr(Service, "_load_next", broken)
        with pytest.raises(ReloadError, match=r"MemoryError: no room for two; bundle .* is still served"):
            await service.reload()
        assert service.model is before

    asyncio.run(history())
    assert 'relevance_reloads_total{outcome="refused"} 1.0' in service.exposition().decode()


def test_a_drain_that_is_asked_for_during_the_start_is_kept(service):
    """Traffic must not come after the answer that it will not."""

    async def history() -> None:
        starting = asyncio.create_task(service.start())
        await asyncio.sleep(0)
        service.drain()
        assert service.phase == "starting"
        await starting

    asyncio.run(history())
    assert (service.phase, service.ready) == ("draining", False)
