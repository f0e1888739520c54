"""Supervised fine-tuning in processes of its own: killed and started again, and shared by two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sft_runs import OVERRIDES, report_of, start

from training.runs import DONE
from training.teacher import sft
from training.teacher.policy import load_policy

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("one_thread")


SCRIPT = """
import sys
from pathlib import Path
from training.recipe import load_recipe
from training.runs import Run
from training.teacher.sft import fit_policy

out, shared, *overrides = sys.argv[1:]
fit_policy(Run(load_recipe("tiny", overrides), Path(out), shared=Path(shared)))
"""


def command(tmp_path, earlier, *overrides):
    """Give the command that runs the stage in a process of its own."""
    script = tmp_path / "run_sft.py"
    script.write_text(SCRIPT)
    (tmp_path / "out").mkdir(exist_ok=True)
    return [str(script), str(tmp_path / "out"), str(earlier), *OVERRIDES, *overrides]


def environment():
    """Give the processes their modules and one core each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(sft.__file__).parents[2])}


def test_a_killed_fine_tuning_goes_on_from_its_checkpoint(earlier, tuned, tmp_path):
    """SIGKILL after the second checkpoint; the next run makes the missing steps only, and ends where the whole run did.

    The held-out loss is that of the uninterrupted run, which another order of rows would not reach.
    """
    words = [sys.executable, *command(tmp_path, earlier, "teacher.sft.save_steps=2")]
    work = tmp_path / "out" / "sft" / "phases" / "sft"
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (work / "checkpoint-4" / "trainer_state.json").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "sft" / DONE).exists()
    left = max(int(path.name.rpartition("-")[2]) for path in work.glob("checkpoint-*"))
    sft.fit_policy(start(earlier, tmp_path / "out", "teacher.sft.save_steps=2"))
    expected, found = (report_of(path)["phases"]["sft"] for path in (tuned.path, tmp_path / "out"))

    assert 4 <= left < expected["steps"]
    assert found["steps"] == expected["steps"]
    assert found["tokens_seen"] == expected["tokens_seen"]
    assert found["held_out_loss"] == pytest.approx(expected["held_out_loss"], abs=1e-4)
    assert load_policy(tmp_path / "out" / "sft" / "policy").record is not None


def test_two_processes_see_every_row_once_an_epoch(earlier, tuned, tmp_path):
    """Under `accelerate launch` with the shipped configuration: same steps, same tokens, nearly the same loss.

    Both processes together see each row's tokens once an epoch and one token for each row without loss.
    """
    launch = Path(sft.__file__).parent / "launch" / "ddp.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    words = [*launcher, "--num_processes", "2", *command(tmp_path, earlier)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = (report_of(path)["phases"]["sft"] for path in (tuned.path, tmp_path / "out"))

    assert found["processes"] == 2
    assert found["steps"] == expected["steps"]
    added = -expected["rows"] % 8
    assert found["tokens_seen"] == expected["tokens_seen"] + 2 * added
    assert found["held_out_loss"] == pytest.approx(expected["held_out_loss"], rel=0.2)
    assert load_policy(tmp_path / "out" / "sft" / "policy").record.view == "unified"
