"""API keys: who is let in, how keys are rotated, and that a key is never shown."""

from __future__ import annotations

import os

import pytest

from relevance.errors import SettingsError
from service import api_keys
from service.api_keys import ApiKeys

FIRST, SECOND, THIRD = "first-key-0123456789", "second-key-0123456789", "third-key-0123456789"


@pytest.fixture
def file(tmp_path):
    """A file with a comment, a blank line and two keys."""
    path = tmp_path / "keys"
    path.write_text(f"# search backend\n{FIRST}\n\n  {SECOND}  \n")
    return path


@pytest.fixture
def at_once(monkeypatch):
    """The file is looked at for every request."""
    monkeypatch.setattr(api_keys, "RECHECK_S", 0.0)


def _allowed(keys: ApiKeys, key: str) -> bool:
    return keys.allows([(b"host", b"shop"), (b"x-api-key", key.encode())])


@pytest.mark.parametrize("key", [FIRST, SECOND])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}", "{}"])
def test_both_keys_are_accepted_in_both_headers(file, key: str, form: str):
    """The scheme is not case-sensitive, and may be missing: some rerank clients send a key as it is."""
    keys = ApiKeys(file)

    assert keys.allows([(b"authorization", form.format(key).encode())])
    assert _allowed(keys, key)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-api-key", b"")],
        [(b"x-api-key", FIRST[:-1].encode())],
        [(b"x-api-key", f"{FIRST}0".encode())],
        [(b"x-api-key", FIRST.upper().encode())],
        [(b"x-api-key", f"{FIRST}, {SECOND}".encode())],
        [(b"x-api-key", b"\xff" * 40)],
        [(b"authorization", f"Basic {FIRST}".encode())],
        [(b"authorization", f"Bearer{FIRST}".encode())],
        [(b"authorization", b"Bearer ")],
        [(b"cookie", FIRST.encode())],
        [(b"x-api-key", b"# search backend")],
    ],
)
def test_everything_else_is_refused(file, headers):
    """A prefix, another case, another scheme, another header, a comment of the file."""
    assert not ApiKeys(file).allows(headers)


def test_one_valid_key_among_several_headers_is_enough(file):
    """A proxy may add a key beside the caller's own authorisation."""
    assert ApiKeys(file).allows([(b"authorization", b"Bearer of-another-system-00"), (b"x-api-key", SECOND.encode())])


WRONG_FILES = {
    "no key": ("# nothing yet\n\n", "expected 1 to 2 keys, found 0"),
    "three keys": (f"{FIRST}\n{SECOND}\n{THIRD}\n", "expected 1 to 2 keys, found 3"),
    "a short key": (f"{FIRST}\nsecret-123456\n", "line 2: expected a key of at least 16 characters, found 13"),
    "a key with a blank": ("first key 0123456789\n", "line 1: expected a key of printable ASCII"),
    "a key with an accent": ("clé-secrète-0123456789\n", "line 1: expected a key of printable ASCII"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_refused_without_showing_a_key(tmp_path, name: str):
    """The message says which line, and what was expected there."""
    path = tmp_path / "keys"
    text, message = WRONG_FILES[name]
    path.write_text(text)

    with pytest.raises(SettingsError) as refused:
        ApiKeys(path)

    assert message in str(refused.value)
    shown = str(refused.value).replace(str(path), "")
    assert not any(word in shown for word in ("first", "second", "third", "secr"))


def test_a_missing_file_is_refused(tmp_path):
    """It is named."""
    with pytest.raises(SettingsError, match="keys: expected a readable file of API keys: No such file"):
        ApiKeys(tmp_path / "keys")


def test_a_key_is_neither_in_the_repr_nor_in_the_object(file):
    """Only digests are held."""
    keys = ApiKeys(file)

    assert FIRST not in repr(keys)
    assert FIRST not in repr(vars(keys))


@pytest.mark.usefixtures("at_once")
def test_a_rotated_key_needs_no_restart(file, caplog):
    """The old key is refused and the new one accepted once the file has changed."""
    keys = ApiKeys(file)
    file.write_text(f"{SECOND}\n{THIRD}\n")

    with caplog.at_level("INFO", "relevance.service"):
        assert [_allowed(keys, key) for key in (FIRST, SECOND, THIRD)] == [False, True, True]

    assert [record.message for record in caplog.records] == ["API keys read again"]


@pytest.mark.usefixtures("at_once")
def test_a_key_file_that_is_swapped_as_a_symlink_is_read_again(file, tmp_path):
    """How Kubernetes updates a mounted secret; size and time of the new file are those of the old."""
    link, other = tmp_path / "mounted", tmp_path / "other"
    other.write_text(file.read_text().replace(FIRST, FIRST[::-1]))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    link.symlink_to(file)
    keys = ApiKeys(link)
    (tmp_path / "next").symlink_to(other)
    (tmp_path / "next").rename(link)

    assert [_allowed(keys, key) for key in (FIRST, FIRST[::-1])] == [False, True]


@pytest.mark.usefixtures("at_once")
def test_a_damaged_or_missing_new_file_keeps_the_keys_and_is_logged_once(file, caplog):
    """Two damages, three requests after each: two errors, no key in them; a mended file counts again."""
    keys = ApiKeys(file)
    for damage in (lambda: file.write_text(f"{THIRD}\nshort\n"), file.unlink):
        damage()
        assert [_allowed(keys, key) for key in (FIRST, SECOND, THIRD)] == [True, True, False]

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "API keys unchanged" in caplog.text
    assert THIRD not in caplog.text
    file.write_text(f"{THIRD}\n")
    assert _allowed(keys, THIRD)


def test_the_file_is_not_looked_at_for_every_request(file, monkeypatch):
    """Within the pause a change is not seen, after it it is."""
    monkeypatch.setattr(api_keys, "RECHECK_S", 3600.0)
    keys = ApiKeys(file)
    file.write_text(f"{THIRD}\n")
    assert not _allowed(keys, THIRD)

    monkeypatch.setattr(api_keys, "RECHECK_S", 0.0)
    assert _allowed(keys, THIRD)
