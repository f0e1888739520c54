"""`relevance bundle`: bundles delivered by digest into a plain folder, switched and rolled back by one rename.

STORE/<bundle_id>/ is never edited; STORE/current and STORE/previous are links to two of them. A service started with
RELEVANCE_BUNDLE=STORE/current takes the new one when it is told to reload.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from relevance.bundle import MANIFEST, Bundle, open_bundle
from relevance.errors import BundleError, BundleIntegrityError, InputError, RelevanceError

CURRENT = "current"
PREVIOUS = "previous"
_LOCK = ".lock"
_STAGING = ".adding."
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """One bundle of a store.

    Args: role: current, previous or none; problem: why it must not be served, None for a sound one, whose model, date
        of creation and size are then known.
    """

    bundle: str
    role: str | None
    problem: str | None = None
    model: str | None = None
    created: str | None = None
    size_bytes: int | None = None


class BundleStore:
    """A folder of bundles; changes hold an exclusive lock on it, so that several may add and switch at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, source: Path, *, expected_id: str | None = None) -> str:
        """Verify a bundle, copy the files it lists, verify the copy and give it its name; twice is as good as once.

        Args: expected_id: what the caller ordered.
        Returns: the bundle id. Raises: BundleError: another id, a damaged source or copy, a store that cannot be
            written to; nothing of a failed or killed copy counts, and the next `add` clears it away.
        """
        bundle = open_bundle(source.resolve())
        bundle_id = bundle.manifest.bundle_id
        if expected_id is not None and bundle_id != expected_id:
            raise BundleError(f"{source}: expected bundle {expected_id}, found {bundle_id}")
        with self._locked():
            for stale in self.root.glob(_STAGING + "*"):
                shutil.rmtree(stale)
            if (self.root / bundle_id).exists():
                self._verified(bundle_id)
                return bundle_id
            with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.root) as staging:
                copy = Path(staging) / bundle_id
                _copy(bundle, copy)
                _open_as(bundle_id, copy)
                os.replace(copy, self.root / bundle_id)
            _sync(self.root)
        return bundle_id

    def use(self, bundle_id: str) -> None:
        """Make a stored bundle the current one; the current one becomes the previous one.

        Raises: InputError: not a bundle id; BundleError: not in the store, or damaged.
        """
        with self._locked():
            self._verified(bundle_id)
            before = self.linked(CURRENT)
            if before == bundle_id:
                return
            if before is not None:
                self._link(PREVIOUS, before)
            self._link(CURRENT, bundle_id)

    def rollback(self) -> str:
        """Swap the current and the previous bundle; twice leads back.

        Returns: the id of what is current now. Raises: BundleError: no previous one, or it is damaged.
        """
        with self._locked():
            before, target = self.linked(CURRENT), self.linked(PREVIOUS)
            if before is None or target is None:
                raise BundleError(
                    f"{self.root}: expected a {CURRENT} and a {PREVIOUS} bundle, found {before}, {target}"
                )
            self._verified(target)
            self._link(CURRENT, target)
            self._link(PREVIOUS, before)
        return target

    def linked(self, name: str) -> str | None:
        """Give the id that `current` or `previous` points to; None when there is no such name.

        Raises: BundleError: the name is taken by something that is not a link.
        """
        path = self.root / name
        if path.exists() and not path.is_symlink():
            raise BundleError(f"{path}: expected a link to a stored bundle, found a file or folder")
        return path.readlink().name if path.is_symlink() else None

    def entries(self) -> list[StoredBundle]:
        """Give every bundle of the store in order of its id, each verified anew.

        Raises: InputError: no such folder.
        """
        if not self.root.is_dir():
            raise InputError(f"{self.root}: expected the folder of a store, found none")
        roles = {self.linked(name): name for name in (PREVIOUS, CURRENT)}
        names = sorted(path.name for path in self.root.iterdir() if _ID.fullmatch(path.name))
        return [self._entry(name, roles.get(name)) for name in names]

    def _entry(self, bundle_id: str, role: str | None) -> StoredBundle:
        try:
            manifest = self._verified(bundle_id).manifest
        except RelevanceError as error:
            return StoredBundle(bundle_id, role, problem=str(error))
        size = sum(entry.size for entry in manifest.files.values())
        return StoredBundle(bundle_id, role, model=manifest.model_id, created=manifest.created, size_bytes=size)

    def _verified(self, bundle_id: str) -> Bundle:
        if not _ID.fullmatch(bundle_id):
            raise InputError(f"expected a bundle id of 16 hexadecimal digits, found {bundle_id!r}")
        path = self.root / bundle_id
        if not path.is_dir():
            raise BundleError(f"{path}: expected a stored bundle, found none; add it first")
        return _open_as(bundle_id, path)

    def _link(self, name: str, bundle_id: str) -> None:
        made = self.root / f".{name}"
        made.unlink(missing_ok=True)
        made.symlink_to(bundle_id)
        os.replace(made, self.root / name)
        _sync(self.root)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise BundleError(f"{self.root}: expected a store that can be changed: {error}") from error


def _open_as(bundle_id: str, path: Path) -> Bundle:
    bundle = open_bundle(path)
    if bundle.manifest.bundle_id != bundle_id:
        raise BundleIntegrityError(f"{path}: expected bundle {bundle_id}, found {bundle.manifest.bundle_id}")
    return bundle


def _copy(bundle: Bundle, target: Path) -> None:
    """Copy what the manifest lists and no more, read-only and on disk before anything points to it."""
    target.mkdir()
    target.chmod(0o755)
    for name in (*bundle.manifest.files, MANIFEST):
        shutil.copyfile(bundle.path / name, target / name)
        (target / name).chmod(0o444)
        _sync(target / name)
    _sync(target)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def main(argv: list[str]) -> int:
    """Add, use, roll back or list; prints the id that an action was about, or one JSON object a bundle.

    Raises: BundleError, InputError: the store is then as it was before.
    """
    arguments = _parser().parse_args(argv)
    store = BundleStore(arguments.store)
    if arguments.action == "list":
        for entry in store.entries():
            sys.stdout.write(json.dumps(asdict(entry)) + "\n")
        return 0
    if arguments.action == "add":
        bundle_id = store.add(arguments.source, expected_id=arguments.id)
        if arguments.use:
            store.use(bundle_id)
    elif arguments.action == "use":
        bundle_id = arguments.id
        store.use(bundle_id)
    else:
        bundle_id = store.rollback()
    sys.stdout.write(bundle_id + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="relevance bundle", description=__doc__)
    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("--store", type=Path, required=True, help="folder of the store")
    actions = parser.add_subparsers(dest="action", required=True)
    add = actions.add_parser("add", parents=[store], help="verify a bundle and copy it into the store")
    add.add_argument("source", type=Path, help="bundle directory")
    add.add_argument("--id", help="refuse a source of another bundle id")
    add.add_argument("--use", action="store_true", help="make it the current one")
    use = actions.add_parser("use", parents=[store], help="make a stored bundle the current one")
    use.add_argument("id", help="bundle id")
    actions.add_parser("rollback", parents=[store], help="swap the current and the previous bundle")
    actions.add_parser("list", parents=[store], help="one JSON object a bundle: role, model, size, and what is wrong")
    return parser
