"""A store of bundles: what gets in, what becomes current, what a failed or killed copy leaves, and rollback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relevance.bundle import open_bundle, write_bundle
from relevance.cli import main as relevance
from relevance.errors import BundleError, BundleIntegrityError, InputError
from service.bundle_store import CURRENT, PREVIOUS, BundleStore, main

KILLED_BY_SIZE = """
import resource, signal, sys
from service.bundle_store import main
signal.signal(signal.SIGXFSZ, signal.{handler})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(sys.argv[1:]))
"""
"""Adds with a limit on file sizes: writing beyond it fails, or with the default handler kills the process at once."""


@pytest.fixture
def store(tmp_path) -> BundleStore:
    """An empty store that does not exist yet."""
    return BundleStore(tmp_path / "store")


@pytest.fixture(scope="session")
def sources(tiny_bundle: Path, tmp_path_factory) -> dict[str, Path]:
    """Three bundles that differ in their commit, by id."""
    folder = tmp_path_factory.mktemp("sources")
    manifest = open_bundle(tiny_bundle).manifest
    files = {name: tiny_bundle / name for name in manifest.files}
    found = {}
    for number in range(3):
        path = folder / str(number)
        written = write_bundle(path, manifest.model_copy(update={"commit": f"commit-{number}"}), files)
        found[written.bundle_id] = path
    return found


def run_limited(handler: str, source: Path, store: BundleStore) -> subprocess.CompletedProcess[str]:
    """Add a bundle in a process that cannot write a whole graph."""
    script = KILLED_BY_SIZE.format(handler=handler)
    command = [sys.executable, "-c", script, "add", str(source), "--store", str(store.root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def kinds(store):
    """Give the names in a store but for its bundles."""
    return sorted(path.name for path in store.root.iterdir() if path.is_symlink() or path.name.startswith("."))


def test_an_added_bundle_stands_under_its_id_and_is_whole(store, sources):
    """Only what the manifest lists is copied, read-only; nothing becomes current by being added."""
    (wanted, source), *_ = sources.items()
    (source / "engine.cache").write_bytes(b"of another machine")
    try:
        added = store.add(source, expected_id=wanted)
    finally:
        (source / "engine.cache").unlink()
    path = store.root / wanted

    assert added == wanted == open_bundle(path).manifest.bundle_id
    assert {file.name for file in path.iterdir()} == {*open_bundle(source).manifest.files, "manifest.json"}
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o444}
    assert store.linked(CURRENT) is None
    assert kinds(store) == [".lock"]


def test_adding_twice_changes_nothing(store, sources):
    """A delivery may be repeated."""
    (bundle_id, source), *_ = sources.items()
    store.add(source)
    before = (store.root / bundle_id).stat().st_ino
    assert store.add(source) == bundle_id
    assert (store.root / bundle_id).stat().st_ino == before


def test_a_bundle_of_another_id_than_ordered_is_refused(store, sources):
    """The message names both; nothing is made."""
    (found, source), (ordered, _), _ = sources.items()
    with pytest.raises(BundleError, match=f"expected bundle {ordered}, found {found}"):
        store.add(source, expected_id=ordered)
    assert not store.root.exists()


def test_a_damaged_source_is_refused(store, sources, tmp_path):
    """One flipped byte of a graph."""
    damaged = tmp_path / "damaged"
    shutil.copytree(next(iter(sources.values())), damaged)
    graph = next(damaged.glob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleIntegrityError, match="sha256"):
        store.add(damaged)


def test_a_copy_that_came_out_differently_does_not_count(store, sources, monkeypatch):
    """A disk that loses the last byte of every file: the copy is verified before it gets its name."""
    copyfile = shutil.copyfile

    def lossy(source, target):
        copyfile(source, target)
        with Path(target).open("r+b") as file:
            file.truncate(Path(target).stat().st_size - 1)

    monkeypatch.setattr(shutil, "copyfile", lossy)
    with pytest.raises(BundleIntegrityError):
        store.add(next(iter(sources.values())))

    assert kinds(store) == [".lock"]
    assert store.entries() == []


def test_a_source_that_is_switched_during_the_copy_is_copied_whole(store, sources, tmp_path, monkeypatch):
    """The source is a link, moved to another bundle after the first file: what was verified is what arrives."""
    (first, source), (_, other), _ = sources.items()
    link = tmp_path / "latest"
    link.symlink_to(source)
    copyfile = shutil.copyfile

    def switching(file, target):
        link.unlink(missing_ok=True)
        link.symlink_to(other)
        copyfile(file, target)

    monkeypatch.setattr(shutil, "copyfile", switching)

    assert store.add(link) == first
    assert store.entries()[0].problem is None


def test_a_copy_that_fails_half_way_leaves_nothing(store, sources):
    """Writing a graph fails, as on a full disk: one line, exit by our error, no left-overs."""
    done = run_limited("SIG_IGN", next(iter(sources.values())), store)

    assert "BundleError" in done.stderr
    assert "expected a store that can be changed" in done.stderr
    assert kinds(store) == [".lock"]
    assert store.entries() == []


def test_a_copy_that_was_killed_half_way_does_not_count_and_is_cleared_away(store, sources):
    """The process dies while it writes a graph; its lock dies with it, and the next add starts clean."""
    (bundle_id, source), *_ = sources.items()
    done = run_limited("SIG_DFL", source, store)
    left = kinds(store)
    with pytest.raises(BundleError, match="add it first"):
        store.use(bundle_id)

    assert done.returncode < 0
    assert len(left) == 2
    assert left[0].startswith(".adding.")
    assert store.entries() == []
    assert store.add(source) == bundle_id
    assert kinds(store) == [".lock"]


def test_using_and_rolling_back_move_two_links(store, sources):
    """A, then B, then back to A, then forth to B; using what is current already keeps the way back."""
    first, second, _ = (store.add(source) for source in sources.values())
    seen = []
    for act in (
        lambda: store.use(first),
        lambda: store.use(second),
        lambda: store.use(second),
        store.rollback,
        store.rollback,
    ):
        act()
        seen.append((store.linked(CURRENT), store.linked(PREVIOUS)))

    assert seen == [(first, None), (second, first), (second, first), (first, second), (second, first)]
    assert open_bundle(store.root / CURRENT).manifest.bundle_id == second
    assert not Path(store.root / CURRENT).readlink().is_absolute()


def test_without_a_previous_bundle_there_is_no_way_back(store, sources):
    """The message says what was found."""
    bundle_id = store.add(next(iter(sources.values())))
    with pytest.raises(BundleError, match="found None, None"):
        store.rollback()
    store.use(bundle_id)
    with pytest.raises(BundleError, match=f"found {bundle_id}, None"):
        store.rollback()


def damage(store, bundle_id):
    """Edit a stored bundle's policy."""
    policy = store.root / bundle_id / "policy.toml"
    policy.chmod(0o644)
    policy.write_bytes(policy.read_bytes() + b"\n# looser\n")


def test_only_a_sound_bundle_becomes_current(store, sources):
    """Edited after it was added: neither use, nor rollback, nor a second delivery accepts it; the links stay."""
    (first, source), (second, other), _ = sources.items()
    store.add(source)
    store.add(other)
    store.use(first)
    store.use(second)
    damage(store, first)
    for act in (lambda: store.use(first), store.rollback, lambda: store.add(source)):
        with pytest.raises(BundleIntegrityError, match=r"policy\.toml"):
            act()

    assert (store.linked(CURRENT), store.linked(PREVIOUS)) == (second, first)


def test_a_bundle_under_another_id_than_its_own_is_refused(store, sources):
    """Somebody renamed a folder."""
    (first, source), (second, _), _ = sources.items()
    store.add(source)
    (store.root / first).rename(store.root / second)
    with pytest.raises(BundleIntegrityError, match=f"expected bundle {second}, found {first}"):
        store.use(second)


def test_a_folder_in_the_place_of_a_link_is_left_alone(store, sources):
    """Somebody copied a bundle to `current` by hand: neither listing nor switching takes it for a link."""
    (bundle_id, source), *_ = sources.items()
    store.add(source)
    shutil.copytree(source, store.root / CURRENT)
    for act in (store.entries, lambda: store.use(bundle_id), store.rollback):
        with pytest.raises(BundleError, match="current: expected a link"):
            act()

    assert (store.root / CURRENT / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["../elsewhere", "current", ".lock", "0123456789ABCDEF", "", "0" * 17])
def test_what_is_not_an_id_is_no_path(store, name):
    """Only 16 hexadecimal digits lead into the store."""
    with pytest.raises(InputError, match="16 hexadecimal digits"):
        store.use(name)


def test_the_list_tells_roles_and_what_is_wrong(store, sources, capsys):
    """One JSON object a bundle, in order of the ids."""
    first, second, third = (store.add(source) for source in sources.values())
    store.use(first)
    store.use(second)
    damage(store, third)
    assert main(["list", "--store", str(store.root)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {row["bundle"]: row for row in rows}

    assert [row["bundle"] for row in rows] == sorted([first, second, third])
    assert [found[one]["role"] for one in (first, second, third)] == [PREVIOUS, CURRENT, None]
    assert found[second]["problem"] is None
    assert found[second]["size_bytes"] > 100_000
    assert "policy.toml" in found[third]["problem"]


def test_a_store_that_does_not_exist_has_no_list(store):
    """Rather than an empty one: the path is mistyped."""
    with pytest.raises(InputError, match="expected the folder of a store"):
        store.entries()


def test_many_adds_at_once_are_safe(store, sources):
    """Six processes, two for each bundle, all make it current: all end well, and what is left is whole."""
    commands = [
        [sys.executable, "-m", "relevance.cli", "bundle", "add", str(source), "--store", str(store.root), "--use"]
        for source in (*sources.values(), *sources.values())
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in running]
    entries = store.entries()

    assert [(error, status) for _, error, status in ended] == [(b"", 0)] * 6
    assert [(entry.bundle, entry.problem) for entry in entries] == [(one, None) for one in sorted(sources)]
    assert store.linked(CURRENT) != store.linked(PREVIOUS)
    assert kinds(store) == [".lock", CURRENT, PREVIOUS]


def test_the_command_delivers_switches_and_goes_back(store, sources, capsys):
    """Each prints the id it was about; a wrong one is one line and exit status 2."""
    (first, source), (second, other), (third, _) = sources.items()
    told = []
    for arguments in (
        ["add", str(source), "--id", first, "--use"],
        ["add", str(other)],
        ["use", second],
        ["rollback"],
    ):
        assert relevance(["bundle", *arguments, "--store", str(store.root)]) == 0
        told.append(capsys.readouterr().out.strip())

    assert told == [first, second, second, first]
    assert relevance(["bundle", "use", third, "--store", str(store.root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert store.linked(CURRENT) == first
