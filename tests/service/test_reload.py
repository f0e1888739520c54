"""Another bundle or policy without a pause: what changes, what is refused, and that no request notices."""

from __future__ import annotations

import json
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest

from relevance.bundle import open_bundle, write_bundle
from service.bundle_store import BundleStore

PATIENCE_S = 60
REFUSED = 'relevance_reloads_total{outcome="refused"}'
STRICT = """
schema_version = 1
version = "strict"
filter_tier = 2
[pooled]
values = [0.9, 0.95, 0.97, 0.99]
certified = false
"""


@pytest.fixture(scope="module")
def shared(launch_shared):
    """A server of the tiny bundle."""
    return launch_shared(faulty=True)


@pytest.fixture
def server(shared, tiny_bundle: Path):
    """The same server, brought back to the tiny bundle and its policy."""
    assert reload(shared, bundle=tiny_bundle, policy=tiny_bundle / "policy.toml").status_code == 200
    return shared


@pytest.fixture
def rewrite(tiny_bundle: Path, tmp_path: Path):
    """Write a sound copy of the tiny bundle with some files of other content."""

    def write(name: str, **contents: bytes) -> Path:
        manifest = open_bundle(tiny_bundle).manifest
        files: dict[str, bytes | Path] = {file: tiny_bundle / file for file in manifest.files}
        files |= {file.replace("_", "."): content for file, content in contents.items()}
        write_bundle(tmp_path / name, manifest, files)
        return tmp_path / name

    return write


def reload(server, **wanted: object) -> httpx.Response:
    """Ask for a reload."""
    return server.client.post("/admin/reload", json={name: str(value) for name, value in wanted.items()})


def score(server, body: dict) -> dict:
    """Give a sound answer."""
    answer = server.client.post("/score", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def column(answer: dict, name: str) -> list:
    """Give one value of every row."""
    return [row[name] for row in answer["results"]]


def wait_for_more(answers: list, at_least: int = 8) -> None:
    """Return when so many more have come."""
    enough, give_up = len(answers) + at_least, time.monotonic() + PATIENCE_S
    while len(answers) < enough:
        assert time.monotonic() < give_up
        time.sleep(0.01)


@contextmanager
def load(server, bodies: list[dict], n_clients: int = 4):
    """Send these bodies again and again from some clients, from before the block until after it.

    Gives the list of answers, complete at the end.
    """
    stop, answers = Event(), []

    def ask(first: int) -> None:
        """Be one client."""
        with httpx.Client(base_url=server.client.base_url, timeout=PATIENCE_S) as client:
            number = first
            while not stop.is_set():
                number += 1
                body = number % len(bodies)
                answers.append((body, client.post("/score", json=bodies[body])))

    with ThreadPoolExecutor(n_clients) as pool:
        clients: list[Future[None]] = [pool.submit(ask, first) for first in range(n_clients)]
        try:
            wait_for_more(answers)
            yield answers
            wait_for_more(answers)
        finally:
            stop.set()
    for client in clients:
        client.result()


def test_another_policy_changes_tiers_and_flushes_nothing(server, fresh_body, tmp_path: Path):
    """Scores come from the cache as they were, tiers from the new cut points; a rollback gives the old tiers."""
    (tmp_path / "strict.toml").write_text(STRICT)
    body = fresh_body(20)
    before = score(server, body)
    entries = server.metrics()['relevance_cache_entries{cache="pairs"}']

    replaced = reload(server, policy=tmp_path / "strict.toml").json()
    after = score(server, body)
    kept = server.metrics()['relevance_cache_entries{cache="pairs"}']
    rolled = server.client.post("/admin/rollback").json()

    assert (replaced["replaced"], replaced["policy"], after["policy"]) == ("policy", "strict", "strict")
    assert column(after, "score") == column(before, "score")
    assert set(column(after, "source")) == {"cache"}
    assert set(column(after, "tier")) == {0} != set(column(before, "tier"))
    assert kept >= entries >= 20
    assert (rolled["replaced"], rolled["policy"]) == ("policy", "tiny-policy")
    assert column(score(server, body), "tier") == column(before, "tier")


def test_another_bundle_gives_other_scores_and_a_rollback_the_old_ones(server, fresh_body, other_bundle: Path):
    """Answers, /info and the series name what is served; the old scores are still cached."""
    body = fresh_body(20)
    before = score(server, body)

    replaced = reload(server, bundle=other_bundle).json()
    after = score(server, body)
    info = server.client.get("/info").json()
    series = [name for name in server.metrics() if name.startswith("relevance_model_info")]
    rolled = server.client.post("/admin/rollback").json()
    again = score(server, body)

    other_id = open_bundle(other_bundle).manifest.bundle_id
    assert (replaced["replaced"], replaced["bundle"], info["bundle"]) == ("bundle", other_id, other_id)
    assert after["model"] == f"other@{other_id}"
    assert len(series) == 1
    assert other_id in series[0]
    assert set(column(after, "source")) == {"model"}
    assert column(after, "score") != column(before, "score")
    assert (rolled["replaced"], again["model"]) == ("bundle", before["model"])
    assert column(again, "score") == column(before, "score")
    assert set(column(again, "source")) == {"cache"}


def test_a_rollback_finds_a_bundle_that_had_replaced_the_policy_only(server, rewrite, other_bundle: Path):
    """One of the same graph but another calibrator: it is that one, of that path, which comes back."""
    calibration = json.loads((open_bundle(other_bundle).path / "calibration.json").read_text())
    middle = rewrite("middle", calibration_json=json.dumps(calibration | {"version": "middle"}).encode())
    kinds = [reload(server, bundle=path).json()["replaced"] for path in (middle, other_bundle)]

    rolled = server.client.post("/admin/rollback").json()

    assert kinds == ["policy", "bundle"]
    assert rolled["calibration"] == "middle"
    assert rolled["bundle"] == open_bundle(middle).manifest.bundle_id


def test_a_rollback_restores_a_policy_whose_file_was_overwritten(server, fresh_body, tmp_path: Path):
    """The same path is edited and reloaded: rolling back brings the policy that was in force, not the new content."""
    policy = tmp_path / "policy.toml"
    policy.write_text(STRICT)
    assert reload(server, policy=policy).status_code == 200
    policy.write_text(STRICT.replace('"strict"', '"stricter"'))
    assert reload(server, policy=policy).json()["policy"] == "stricter"

    back = server.client.post("/admin/rollback")

    assert (back.status_code, back.json()["policy"]) == (200, "strict")
    assert score(server, fresh_body())["policy"] == "strict"


def test_an_empty_reload_reads_what_the_process_was_started_with(server, other_bundle: Path):
    """After a reload by path, `{}` (and so SIGHUP) goes back to the configured bundle."""
    before = server.client.get("/info").json()["bundle"]
    assert reload(server, bundle=other_bundle).json()["bundle"] != before

    assert server.client.post("/admin/reload", json={}).json()["bundle"] == before


def test_sighup_takes_what_the_store_calls_current(launch, tiny_bundle: Path, other_bundle: Path, tmp_path: Path):
    """The link is switched, then the signal sent; a damaged one is refused in the log and the service goes on."""
    store = BundleStore(tmp_path / "store")
    first, second = store.add(tiny_bundle), store.add(other_bundle)
    store.use(first)
    server = launch(store.root / "current", bundle_id=first)

    store.use(second)
    server.process.send_signal(signal.SIGHUP)
    assert server.line(message="bundle reloaded")["bundle"] == second
    assert server.client.get("/info").json()["bundle"] == second

    assert store.rollback() == first
    (store.root / first / "policy.toml").chmod(0o600)
    (store.root / first / "policy.toml").write_text(STRICT)
    server.process.send_signal(signal.SIGHUP)
    assert server.line(level="error")["message"].startswith("not reloaded")
    assert server.client.get("/info").json()["bundle"] == second
    assert server.metrics()[REFUSED] == 1


def flip_a_byte(bundle: Path) -> dict:
    """Damage a graph in its middle."""
    graph = next(bundle.glob("*.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    return {}


def truncate(bundle: Path) -> dict:
    """Cut a graph off."""
    graph = next(bundle.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1000])
    return {}


def mistake(bundle: Path) -> dict:
    """Order another bundle than is there."""
    return {"bundle_id": "0123456789abcdef"}


def remove(bundle: Path) -> dict:
    """Leave nothing."""
    shutil.rmtree(bundle)
    return {}


def break_the_golden_pairs(bundle: Path) -> dict:
    """Write a bundle, sound in itself, whose graph does not compute what the golden pairs say."""
    opened = open_bundle(bundle)
    golden = [pair.model_dump(mode="json") for pair in opened.golden]
    golden[0]["logits"] = {precision: [9.0] * 4 for precision in golden[0]["logits"]}
    lines = "".join(json.dumps(pair) + "\n" for pair in golden).encode()
    files = {name: (bundle / name).read_bytes() for name in opened.manifest.files} | {"golden.jsonl": lines}
    shutil.rmtree(bundle)
    write_bundle(bundle, opened.manifest, files)
    return {}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip_a_byte, "it was edited"),
        (truncate, "it was truncated"),
        (mistake, "expected bundle 0123456789abcdef"),
        (remove, "expected a bundle directory"),
        (break_the_golden_pairs, "golden pair 1"),
    ],
    ids=["flipped byte", "truncated graph", "wrong id", "nothing there", "other golden pairs"],
)
def test_a_bundle_that_must_not_be_served_changes_nothing(
    server, fresh_body, other_bundle: Path, tmp_path: Path, damage, told: str
):
    """Under load: a 409 that says why, a count, and every request answered by the bundle that was there before."""
    copy = Path(shutil.copytree(other_bundle, tmp_path / "copy"))
    wanted = damage(copy)
    served = server.client.get("/info").json()["bundle"]
    before = server.metrics()[REFUSED]

    with load(server, [fresh_body(30) for _ in range(50)]) as answers:
        refused = reload(server, bundle=copy, **wanted)

    assert (refused.status_code, refused.json()["code"]) == (409, "not_reloaded")
    assert refused.headers["content-type"] == "application/problem+json"
    assert told in refused.json()["detail"]
    assert f"bundle {served} is still served" in refused.json()["detail"]
    assert server.metrics()[REFUSED] == before + 1
    assert {answer.status_code for _, answer in answers} == {200}
    assert {answer.json()["model"] for _, answer in answers} == {f"tiny@{served}"}
    assert server.client.get("/readyz").status_code == 200


def test_twenty_reloads_to_and_fro_under_load_mix_nothing_up(launch, fresh_body, tiny_bundle: Path, other_bundle: Path):
    """Without a cache: each answer holds the scores of the very bundle that it names; memory is given back."""
    server = launch(pair_cache_bytes="0")
    bodies = [fresh_body(10 + number) for number in range(12)]
    own: dict[str, list[list[float]]] = {}
    for bundle in (other_bundle, tiny_bundle):
        assert reload(server, bundle=bundle).status_code == 200
        answers = [score(server, body) for body in bodies]
        own[answers[0]["model"]] = [column(answer, "score") for answer in answers]
    memory = []

    with load(server, bodies) as answers:
        for number in range(20):
            reloaded = reload(server, bundle=(other_bundle, tiny_bundle)[number % 2])
            assert (reloaded.status_code, reloaded.json()["replaced"]) == (200, "bundle")
            memory.append(psutil.Process(server.process.pid).memory_info().rss)

    assert len(own) == 2
    assert {answer.status_code for _, answer in answers} == {200}
    assert {answer.json()["model"] for _, answer in answers} == set(own)
    for body, answer in answers:
        found = answer.json()
        assert column(found, "score") == pytest.approx(own[found["model"]][body], abs=2e-4)
    assert memory[-1] - memory[4] < 150_000_000


def test_a_second_reload_at_the_same_time_is_refused(server, other_bundle: Path):
    """The first one goes through: its replay is slowed down so that the second comes in the middle."""
    server.set_engine("slow:0.02")
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(reload, server, bundle=other_bundle)
            time.sleep(0.3)
            second = reload(server, bundle=other_bundle)
            assert first.result().status_code == 200
    finally:
        server.set_engine("ok")

    assert (second.status_code, second.json()["code"]) == (409, "not_reloaded")
    assert "under way" in second.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"bundle": ""}', b'{"bundle_id": "x"}', b'{"path": "a"}'])
def test_a_reload_that_is_not_understood_is_no_reload(server, body: bytes):
    """A 400 or 422, and nothing counted as refused."""
    before = server.metrics()[REFUSED]

    answer = server.client.post("/admin/reload", content=body, headers={"content-type": "application/json"})

    assert answer.status_code in {400, 422}
    assert server.metrics()[REFUSED] == before
