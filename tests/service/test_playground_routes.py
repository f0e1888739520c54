"""The playground's routes without a browser: what is sent with which headers, to whom, and when not."""

from __future__ import annotations

import re
import socket

import httpx
import pytest
from browser import CAPPING

from service.playground_page import FOLDER

KEY = "playground-key-0123456789"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
ASSETS = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")
OUTSIDE = re.compile(r"(?:https?:)?//[\w.-]+\.\w+")
NAMESPACE = "http://www.w3.org/2000/svg"
INLINE = re.compile(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", re.IGNORECASE)


@pytest.fixture(scope="module")
def admin_port() -> int:
    """A free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def locked(launch_shared, admin_port: int, tiny_bundle, tmp_path_factory):
    """A server that asks for a key, has administration on a port of its own, and a rule that fires."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    policy = keys.with_name("policy.toml")
    policy.write_text((tiny_bundle / "policy.toml").read_text(encoding="utf-8") + CAPPING)
    return launch_shared(api_keys=str(keys), admin_port=str(admin_port), policy=str(policy))


@pytest.mark.parametrize("path", ["/", *(f"/playground/{name}" for name in ASSETS)])
def test_each_file_comes_with_its_type_a_strict_policy_and_a_tag(server, path: str):
    """Nothing but our own scripts, styles and requests is allowed; the tag of what is known is answered by 304."""
    answer = server.client.get(path)
    suffix = f".{path.rpartition('.')[2]}" if path != "/" else ".html"
    policy = {part.split()[0]: part.split()[1:] for part in answer.headers["content-security-policy"].split("; ")}

    assert answer.headers["content-type"] == f"{TYPES[suffix]}; charset=utf-8"
    assert policy == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    for known, status in ((answer.headers["etag"], 304), (f'"a", W/{answer.headers["etag"]}', 304), ('"a"', 200)):
        again = server.client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.headers["etag"]) == (status, answer.headers["etag"])


def test_the_page_names_nothing_outside_and_holds_no_inline_script_or_style(server):
    """Every address is relative, so that the page works below any path; each file that one names is there."""
    page = server.client.get("/").text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    imported = re.findall(r'from "\./([^"]+)"', "".join(server.client.get(f"/playground/{n}").text for n in ASSETS))

    assert INLINE.findall(page) == []
    assert [name for name in named if name.startswith(("/", "http"))] == []
    asked = {name.removeprefix("playground/") for name in named if name.startswith("playground/")}
    assert sorted(asked | set(imported)) == ASSETS
    for name in ASSETS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert OUTSIDE.findall(text.replace(NAMESPACE, "")) == [], name
        assert "innerHTML" not in text


@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2Fapp.py", "%2e%2e/app.py", "sub/main.js", ""])
def test_no_other_file_is_sent(server, name: str):
    """Only what lies in the folder, by its name, and the page only at its own address."""
    assert server.client.get(f"/playground/{name}").status_code == 404


def test_where_keys_are_asked_for_the_page_alone_is_open(locked):
    """Whoever has it can put in a key; what it asks with it is guarded as ever."""
    client = locked.client

    assert client.get("/").status_code == 200
    assert client.get("/playground/main.js").status_code == 200
    assert client.get("/info").status_code == 401
    assert client.post("/").status_code == 405
    assert client.get("/info", headers={"x-api-key": KEY}).json()["rules"]


@pytest.mark.usefixtures("locked")
def test_the_admin_port_has_no_playground(admin_port: int):
    """Metrics and administration are there, and nothing for a browser."""
    for path, status in (("/metrics", 200), ("/", 404), ("/playground/main.js", 404)):
        assert httpx.get(f"http://127.0.0.1:{admin_port}{path}").status_code == status


def test_switched_off_it_is_as_unknown_as_any_path(launch):
    """The page and its assets answer as a path that never was."""
    server = launch(playground="false")

    for path in ("/", "/playground/main.js"):
        answer = server.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert server.client.get("/readyz").status_code == 200


def test_its_requests_are_counted_under_two_names(server):
    """The assets share one, so that no label grows with them."""
    before = server.metrics()
    for path in ("/", "/playground/main.js", "/playground/items.js", "/playground/nothing.js"):
        server.client.get(path)
    after = server.metrics()

    counted = {
        (route, status): after[name] - before.get(name, 0)
        for route, status, kind in (("/", 200, "ok"), ("/playground", 200, "ok"), ("unmatched", 404, "refused"))
        for name in [f'relevance_requests_total{{code="{status}",outcome="{kind}",route="{route}"}}']
    }
    assert counted == {("/", 200): 1, ("/playground", 200): 2, ("unmatched", 404): 1}


def test_info_tells_the_rules_and_a_row_names_those_that_fired(locked):
    """With both, whoever reads an answer can apply the policy again."""
    extras = ("with warranty", "2 pack", "new model")
    titles = [
        title for extra in extras for title in (f"red running shoes {extra}", f"running shoes phone case {extra}")
    ]
    items = [{"id": number, "title": title} for number, title in enumerate(titles)]
    body = {"query": "red running shoes", "locale": "us", "items": items, "return_filtered": "full"}
    answer = locked.client.post("/score", json=body, headers={"x-api-key": KEY}).json()
    rules = locked.client.get("/info", headers={"x-api-key": KEY}).json()["rules"]
    fired = {row.get("rules", [None])[0]: row["tier"] for row in answer["filtered"]}

    assert rules[-1] == {"name": "capped", "class_at_least": {"E": 0.8}, "cap_tier": 1}
    assert fired["capped"] == 1
    assert [row for row in answer["results"] if "rules" in row] == []
    assert answer["results"]
