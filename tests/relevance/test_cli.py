"""The relevance command."""

import subprocess
import sys

import pytest

from relevance import __version__
from relevance.cli import COMMANDS, main


def test_help_lists_every_command_in_pipeline_order(capsys):
    """The table is the help text."""
    assert main([]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)


def test_the_version_is_that_of_the_package(capsys):
    """One line, nothing else."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_is_refused_with_those_expected(capsys):
    """Status 2 and one line on stderr."""
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == f"relevance: expected a command of {', '.join(COMMANDS)}; found 'trian'\n"


def test_an_error_of_ours_is_one_line(capsys, tmp_path):
    """A recipe that is not there: what was expected and found, no traceback."""
    assert main(["calibrate", "--recipe", "nowhere", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("relevance calibrate: expected a recipe of ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "missing", "extra"), [("baseline", "rapidfuzz", "training"), ("calibrate", "scipy", "training")]
)
def test_a_missing_package_names_the_extra_to_install(command, missing, extra):
    """A stage whose package is hidden from the import system says which extra brings it."""
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from relevance.cli import main\nsys.exit(main([{command!r}, '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"relevance {command}: the package {missing!r} is missing; pip install 'relevance-tiers[{extra}]'\n"
    )


@pytest.mark.parametrize(("asked", "disabled"), [(None, True), ("0", False)])
def test_libraries_tell_their_makers_nothing_unless_asked_to(asked, disabled, monkeypatch):
    """TRL sends the architecture of every training to its makers; a command switches that off, a user may switch it on.

    Read where huggingface_hub itself reads it, in a fresh process.
    """
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    if asked is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", asked)
    script = (
        "import contextlib\nfrom relevance.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None):\n    main(['data', '--help'])\n"
        "from huggingface_hub import constants\nprint(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{disabled}\n"
