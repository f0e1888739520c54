"""The pair log: what is written, that it reads back, what is never written, and what a kill or a full folder leaves."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from relevance.bundle import Bundle, open_bundle
from relevance.errors import InputError, SettingsError
from relevance.labels import ESCI
from relevance.pairs import Item, Pair, Query, parquet_rows, read_labelled_pairs, read_pairs
from service import pair_log
from service.pair_log import PairLog
from service.scorer import REASONS, Scored
from service.settings import DEFAULT_BUNDLE
from service.telemetry import Telemetry

TIMEOUT_S = 60
ITEMS = (
    Item("steel kettle", "k-1", brand="Morningside", color="red", text="1.7 litres", attributes={"size": "M"}),
    Item("鉄瓶", 7),
    Item("desk lamp", "k-3", brand=""),
)
HOOKS = """
import threading

released = threading.Event()

def hide_digits(text):
    return "".join("#" if c.isdigit() else c for c in text)

def shout(text):
    return text.upper()

def break_on_lamps(text):
    if "lamp" in text:
        raise ValueError(text)
    return text

def give_nothing(text):
    return None

def wait(text):
    released.wait(60)
    return text

NOT_A_FUNCTION = 3
"""


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The embedded default bundle."""
    return open_bundle(DEFAULT_BUNDLE)


@pytest.fixture(autouse=True)
def hooks(tmp_path, monkeypatch):
    """A module of redaction functions, importable as `hooks`."""
    (tmp_path / "hooks.py").write_text(HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hooks", raising=False)


@pytest.fixture
def start(tmp_path):
    """Start pair logs in one folder; all are closed at the end."""
    logs = []

    def run(*, rate: float = 1, max_bytes: int = 2**30, redact: str | None = None) -> PairLog:
        logs.append(PairLog(tmp_path / "log", Telemetry(), rate=rate, max_bytes=max_bytes, redact=redact))
        return logs[-1]

    yield run
    for each in logs:
        each.close()


def _scored(n: int, *, unscored: tuple[int, ...] = ()) -> Scored:
    reason_B = np.zeros(n, dtype=np.int8)
    reason_B[list(unscored)] = 1 + REASONS.index("deadline")
    return Scored(
        score_B=np.linspace(0.9, 0.1, n),
        tier_B=np.linspace(4, 0, n).astype(np.int64),
        label_B=np.arange(n) % 4,
        kept_B=np.linspace(4, 0, n) >= 2,
        truncated_B=np.zeros(n, dtype=bool),
        cached_B=np.zeros(n, dtype=bool),
        length_B=np.full(n, 12),
        reason_B=reason_B,
        policy_locale="us",
        certified=True,
    )


def _offer(to: PairLog, bundle: Bundle, *, query: str = "kettle", items=ITEMS, **options) -> None:
    to.offer(query, items, locale="en-US", scored=_scored(len(items), **options), bundle=bundle)


def _files(folder):
    return sorted((folder / "log").glob("*.parquet"))


def _rows(folder) -> list[dict]:
    return [row for path in _files(folder) for _, row in parquet_rows(path, ("query", "title"))]


def _count(of: PairLog, outcome: str) -> float:
    return of._telemetry.registry.get_sample_value("relevance_pair_log_rows_total", {"outcome": outcome})


def _until(condition) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up, "waited for in vain"
        time.sleep(0.005)


def test_a_row_holds_the_texts_the_outcome_and_the_bundle(start, bundle, tmp_path):
    """Every column of the first of three rows, and what an unscored one lacks."""
    log = start()
    _offer(log, bundle, unscored=(1,))
    log.close()

    first, second, _ = _rows(tmp_path)
    assert abs((first.pop("time") - datetime.now(UTC)).total_seconds()) < TIMEOUT_S
    assert first == {
        **{"query": "kettle", "locale": "en-US", "policy_locale": "us", "index": 0, "item_id": "k-1"},
        **{"title": "steel kettle", "brand": "Morningside", "color": "red", "text": "1.7 litres"},
        **{"attributes": '{"size": "M"}', "score": 0.9, "tier": 4, "kept": True, "reason": None},
        **{"predicted_label": bundle.scheme.classes[0], "bundle": bundle.manifest.bundle_id},
    }
    assert [second[name] for name in ("title", "score", "tier", "predicted_label")] == ["鉄瓶", None, None, None]
    assert (second["reason"], second["item_id"], second["index"]) == ("deadline", "7", 1)
    assert (_count(log, "written"), _count(log, "dropped")) == (3, 0)


def test_a_file_reads_as_pairs_but_not_as_labelled_pairs(start, bundle, tmp_path):
    """It can be annotated; what the model said cannot be taken for an annotator's label."""
    log = start()
    _offer(log, bundle)
    log.close()

    [path] = _files(tmp_path)
    query = Query("kettle", id="kettle", locale="en-US")
    expected = [Item(i.title, str(i.id), i.brand, i.color, i.text, i.attributes) for i in ITEMS]
    assert list(read_pairs(path)) == [Pair(query, item) for item in expected]
    with pytest.raises(InputError, match=r"missing: \['label'\]"):
        read_labelled_pairs(path, ESCI)


def test_rows_that_no_reader_takes_are_left_out(start, bundle, tmp_path):
    """A blank title goes alone, a blank query takes its request along."""
    log = start()
    _offer(log, bundle, items=(Item(" ", 1), Item("kettle", 2)))
    _offer(log, bundle, query="  ")
    log.close()

    assert [pair.item.id for path in _files(tmp_path) for pair in read_pairs(path)] == ["2"]
    assert (_count(log, "written"), _count(log, "dropped")) == (1, 4)


def test_whole_requests_are_sampled(start, bundle, tmp_path):
    """Of 400 requests at 1 in 4 some 100 (± 9) are taken, each with all three items."""
    log = start(rate=0.25)
    for number in range(400):
        _offer(log, bundle, query=f"kettle {number}")
    log.close()

    queries = [row["query"] for row in _rows(tmp_path)]
    assert 50 < len(set(queries)) < 150
    assert {queries.count(query) for query in queries} == {3}


def test_files_are_for_their_owner_alone(start, bundle, tmp_path):
    """0600 in a folder of 0700; no temporary file is left."""
    log = start()
    _offer(log, bundle)
    log.close()

    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "log").iterdir()] == [0o600]


def test_a_new_file_begins_after_enough_rows(start, bundle, tmp_path, monkeypatch):
    """Nine rows in requests of three, a file at six: files of six and three."""
    monkeypatch.setattr(pair_log, "FILE_ROWS", 6)
    log = start()
    for _ in range(3):
        _offer(log, bundle)
    log.close()

    assert [len(list(read_pairs(path))) for path in _files(tmp_path)] == [6, 3]


def test_a_file_is_written_after_a_while_without_more_traffic(start, bundle, tmp_path, monkeypatch):
    """Nobody has to close the log first."""
    monkeypatch.setattr(pair_log, "FILE_S", 0.05)
    log = start()
    _offer(log, bundle)

    _until(lambda: _files(tmp_path))
    assert len(_rows(tmp_path)) == 3


def _noise(number: int, n_items: int = 40) -> list[Item]:
    noise = random.Random(number)
    return [Item(f"{number} {noise.randbytes(100).hex()}", rank) for rank in range(n_items)]


def test_the_oldest_files_make_room(start, bundle, tmp_path, monkeypatch):
    """Thirty files of some 6 kB into 40 kB: the cap holds, the newest rows are there, numbers go on after a restart."""
    monkeypatch.setattr(pair_log, "FILE_ROWS", 40)
    for first in (0, 15):
        log = start(max_bytes=40_000)
        for number in range(first, first + 15):
            _offer(log, bundle, items=_noise(number))
        log.close()

    total = sum(path.stat().st_size for path in _files(tmp_path))
    numbers = [int(row["title"].split()[0]) for row in _rows(tmp_path)]
    assert 20_000 < total <= 40_000
    assert numbers == sorted(numbers)
    assert numbers[-1] == 29
    assert 0 not in numbers
    assert _files(tmp_path)[-1].name.startswith("pairs-00000030-")
    assert log._telemetry.registry.get_sample_value("relevance_pair_log_bytes") == total


def test_a_request_larger_than_the_whole_log_is_dropped(start, bundle, tmp_path):
    """It does not push everything else out."""
    log = start(max_bytes=20_000)
    _offer(log, bundle)
    log.close()
    log = start(max_bytes=20_000)
    _offer(log, bundle, items=_noise(1, n_items=400))
    log.close()

    assert len(_rows(tmp_path)) == 3
    assert (_count(log, "written"), _count(log, "dropped")) == (0, 400)


def test_every_text_goes_through_the_redaction(start, bundle, tmp_path):
    """Query, title, brand, colour, text and attributes; ids stay."""
    log = start(redact="hooks:shout")
    _offer(log, bundle)
    log.close()

    row = _rows(tmp_path)[0]
    shouted = {name: row[name] for name in ("query", "title", "brand", "color", "text", "attributes", "item_id")}
    assert shouted == {
        **{"query": "KETTLE", "title": "STEEL KETTLE", "brand": "MORNINGSIDE", "color": "RED"},
        **{"text": "1.7 LITRES", "attributes": '{"size": "M"}', "item_id": "k-1"},
    }


def test_what_the_redaction_hides_is_not_in_the_file(start, bundle, tmp_path):
    """A telephone number typed into the search box."""
    log = start(redact="hooks:hide_digits")
    _offer(log, bundle, query="kettle 0171 2345678")
    log.close()

    assert {row["query"] for row in _rows(tmp_path)} == {"kettle #### #######"}


@pytest.mark.parametrize(("hook", "kind"), [("break_on_lamps", "ValueError"), ("give_nothing", "InputError")])
def test_a_failing_redaction_drops_the_request_and_tells_no_text(start, bundle, tmp_path, caplog, hook: str, kind: str):
    """Three requests: one error line, nothing on disk, nothing of the texts in the log."""
    log = start(redact=f"hooks:{hook}")
    for _ in range(3):
        _offer(log, bundle)
    log.close()

    assert _files(tmp_path) == []
    assert (_count(log, "written"), _count(log, "dropped")) == (0, 9)
    assert [kind in record.getMessage() for record in caplog.records] == [True]
    assert "lamp" not in caplog.text


@pytest.mark.parametrize("name", ["hooks:gone", "no_such_module:redact", "hooks:NOT_A_FUNCTION", "hooks"])
def test_a_redaction_that_cannot_be_loaded_stops_the_start(start, name: str):
    """The setting and its value are named."""
    with pytest.raises(SettingsError, match=f"pair_log_redact: expected .*, found '{name}'"):
        start(redact=name)


def test_a_folder_that_cannot_be_made_stops_the_start(start, tmp_path):
    """There is a file in its place."""
    (tmp_path / "log").write_text("")

    with pytest.raises(SettingsError, match="log: expected a folder for the pair log"):
        start()


def test_while_the_thread_is_busy_requests_are_dropped_not_waited_for(start, bundle, tmp_path, monkeypatch):
    """Room for two waiting requests while the first is stuck in its redaction: three of five are written."""
    monkeypatch.setattr(pair_log, "MAX_WAITING_CHARS", 3300)
    log = start(redact="hooks:wait")
    for number in range(5):
        _offer(log, bundle, query=f"kettle {number}")
    assert _count(log, "dropped") == 6

    sys.modules["hooks"].released.set()
    log.close()
    assert sorted({row["query"] for row in _rows(tmp_path)}) == ["kettle 0", "kettle 1", "kettle 2"]
    assert (_count(log, "written"), _count(log, "dropped")) == (9, 6)


def test_a_folder_that_goes_away_costs_rows_and_nothing_else(start, bundle, tmp_path, monkeypatch, caplog):
    """The rows are counted as dropped, told once, and writing goes on when the folder is back."""
    monkeypatch.setattr(pair_log, "FILE_ROWS", 3)
    log = start()
    (tmp_path / "log").rmdir()
    for _ in range(2):
        _offer(log, bundle)
    _until(lambda: _count(log, "dropped") == 6)
    (tmp_path / "log").mkdir()
    _offer(log, bundle)
    log.close()

    assert len(_rows(tmp_path)) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "pair log: writing a file: FileNotFoundError; such rows are dropped and counted"
    ]


def test_after_the_end_offers_are_dropped(start, bundle, tmp_path):
    """Closing twice is closing once."""
    log = start()
    log.close()
    log.close()
    _offer(log, bundle)

    assert (_files(tmp_path), _count(log, "dropped")) == ([], 3)


def test_offers_from_many_threads_are_all_accounted_for(start, bundle, tmp_path):
    """Four threads of fifty requests of three items each."""
    log = start()
    threads = [threading.Thread(target=lambda: [_offer(log, bundle) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    log.close()

    assert len(_rows(tmp_path)) == _count(log, "written") == 600


WRITE_ON = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from relevance.bundle import open_bundle
from service import pair_log
from service.settings import DEFAULT_BUNDLE
from service.telemetry import Telemetry
from test_pair_log import ITEMS, _offer
pair_log.FILE_ROWS = 3
log = pair_log.PairLog(Path(sys.argv[1]), Telemetry(), rate=1, max_bytes=2**30, redact=None)
bundle = open_bundle(DEFAULT_BUNDLE)
while True:
    _offer(log, bundle, items=ITEMS)
"""


def test_a_kill_leaves_only_whole_files_and_the_next_start_clears_up(start, tmp_path, request):
    """Killed while it writes file after file; every file reads, and what was half written is gone after a start."""
    command = [sys.executable, "-c", WRITE_ON, str(tmp_path / "log"), str(request.path.parent)]
    with subprocess.Popen(command) as process:
        _until(lambda: len(_files(tmp_path)) >= 5 or process.poll() is not None)
        process.kill()
    (tmp_path / "log" / "pairs-00009999-20260101T000000Z.tmp").write_bytes(b"PAR1 half")
    n_files = len(_files(tmp_path))

    start().close()

    assert n_files >= 5
    assert [len(list(read_pairs(path))) for path in _files(tmp_path)] == [3] * n_files
    assert not list((tmp_path / "log").glob("*.tmp"))
