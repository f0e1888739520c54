"""Request bodies: what is read, inflated, refused, and how much is ever held."""

from __future__ import annotations

import asyncio
import gzip
import random
import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from relevance.errors import BodyTimeoutError, MalformedBodyError, MediaTypeError, TooLargeError
from service import bodies
from service.bodies import read_json_body

MIB = 1024 * 1024
BODY = b'{"query":"steel kettle","items":[{"id":1,"title":"kettle, 1.7 l"}]}' * 50


def _request(*chunks: bytes, ends: bool = True, gone: bool = False, **headers: str) -> Request:
    """A request whose body comes in chunks, and then ends, breaks off, or never ends."""
    named = {"content_type": "application/json"} | headers
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if gone:
        messages.append({"type": "http.disconnect"})
    elif ends:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    rest = iter(messages)

    async def receive():
        """Give the next message, or wait for one that never comes."""
        message = next(rest, None)
        return message if message is not None else await asyncio.Event().wait()

    return Request({"type": "http", "method": "POST", "path": "/score", "headers": raw}, receive)


def _read(request: Request, max_bytes: int = MIB) -> bytes:
    return asyncio.run(read_json_body(request, max_bytes=max_bytes))


COMPRESSED = {"gzip": gzip.compress(BODY), "x-gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY)}


@pytest.mark.parametrize("coding", COMPRESSED)
def test_a_compressed_body_reads_as_the_plain_one(coding: str):
    """Each coding on the list; its name is not case-sensitive."""
    assert _read(_request(COMPRESSED[coding], content_encoding=coding.upper())) == BODY


def test_a_plain_body_may_say_identity():
    """The same as saying nothing."""
    assert _read(_request(BODY, content_encoding="identity")) == _read(_request(BODY)) == BODY


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 3000) | st.sampled_from([256, 512, 4096]),
    alphabet=st.sampled_from([1, 2, 256]),
    piece_bytes=st.sampled_from([1, 7, 256]),
    cuts=st.lists(st.integers(0, 4000), max_size=5),
)
def test_any_body_survives_any_chunks_and_pieces(seed: int, size: int, alphabet: int, piece_bytes: int, cuts):
    """Very compressible and incompressible bytes, cut anywhere, inflated a few bytes at a time."""
    body = bytes(random.Random(seed).randrange(alphabet) for _ in range(size))
    sent = gzip.compress(body)
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bodies, "_PIECE_BYTES", piece_bytes)
        chunks = [sent[start:end] for start, end in pairwise(edges)]

        assert _read(_request(*chunks, content_encoding="gzip"), max_bytes=8192) == body


def test_the_limit_counts_what_comes_out():
    """A body of exactly the limit is read, one byte more is refused, however small it was on the wire."""
    exact, over = gzip.compress(b" " * 100_000), gzip.compress(b" " * 100_001)

    assert len(_read(_request(exact, content_encoding="gzip"), max_bytes=100_000)) == 100_000
    with pytest.raises(TooLargeError, match="expected at most 100000 bytes, found at least 100001"):
        _read(_request(over, content_encoding="gzip"), max_bytes=100_000)


def test_a_compressed_body_over_the_limit_on_the_wire_is_refused():
    """Noise grows by compression: 4,096 bytes sent as more than 4,096."""
    sent = gzip.compress(random.Random(0).randbytes(4096))

    with pytest.raises(TooLargeError, match="expected at most 4096 bytes"):
        _read(_request(sent, content_encoding="gzip"), max_bytes=4096)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_holding_little_more_than_the_limit(coding: str):
    """64 MiB of blanks in some 64 KiB, against a limit of 1 MiB: at most that, one piece and what was sent are held."""
    bomb = (gzip.compress if coding == "gzip" else zlib.compress)(b" " * 64 * MIB)
    request = _request(bomb, content_encoding=coding)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match=f"expected at most {MIB} bytes"):
            _read(request, max_bytes=MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 2 * MIB


DAMAGED = {
    "cut off": COMPRESSED["gzip"][:-9],
    "without its checksum": COMPRESSED["gzip"][:-8],
    "a wrong checksum": COMPRESSED["gzip"][:-8] + b"\0" * 8,
    "a flipped byte": COMPRESSED["gzip"][:40] + b"\xff" + COMPRESSED["gzip"][41:],
    "more after the end": COMPRESSED["gzip"] + b"{}",
    "a second member": COMPRESSED["gzip"] * 2,
    "plain JSON": BODY,
    "nothing": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("chunk_bytes", [1, 10_000])
def test_damaged_compressed_data_is_a_malformed_body(name: str, chunk_bytes: int):
    """In one chunk or byte by byte."""
    sent = DAMAGED[name]
    chunks = [sent[start : start + chunk_bytes] for start in range(0, len(sent), chunk_bytes)]

    with pytest.raises(MalformedBodyError, match=r"expected (whole )?compressed data"):
        _read(_request(*chunks, content_encoding="gzip"))


@pytest.mark.parametrize("coding", ["gzip, gzip", "deflate, gzip", "br", "zstd", "gzip;q=1"])
def test_stacked_and_unknown_codings_are_refused_with_the_list(coding: str):
    """The message says what would be read."""
    with pytest.raises(MediaTypeError, match="one content-encoding of identity, gzip, x-gzip, deflate, found"):
        _read(_request(COMPRESSED["gzip"], content_encoding=coding))


def test_others_get_their_turn_after_every_inflated_piece():
    """8 MiB in pieces of 256 KiB: somebody else runs at least 31 times between the first and the last."""
    turns = 0

    async def count_turns():
        """Count how often the event loop comes by."""
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def read():
        """Read a body while somebody else counts."""
        counting = asyncio.create_task(count_turns())
        await read_json_body(_request(gzip.compress(b" " * 8 * MIB), content_encoding="gzip"), max_bytes=8 * MIB)
        counting.cancel()

    asyncio.run(read())

    assert turns >= 31


def test_a_body_that_does_not_end_in_time_is_given_up(monkeypatch):
    """The message says how long it was waited for and how much came."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)

    with pytest.raises(BodyTimeoutError, match=r"expected all of it within 0\.05 s, found 8 bytes"):
        _read(_request(BODY[:8], ends=False))


def test_a_slow_body_that_is_too_large_anyway_is_told_so(monkeypatch):
    """The declared length was over the limit; the rest never came."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.05)

    with pytest.raises(TooLargeError, match="expected at most 1024 bytes, found 9999"):
        _read(_request(BODY[:8], ends=False, content_length="9999"), max_bytes=1024)


def test_a_client_that_goes_away_is_not_our_error():
    """Starlette's own exception reaches the boundary."""
    with pytest.raises(ClientDisconnect):
        _read(_request(BODY[:8], gone=True))
