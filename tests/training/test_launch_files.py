"""The shipped accelerate configurations, as accelerate itself reads them."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

import training.teacher

FOLDER = Path(training.teacher.__path__[0]) / "launch"


@pytest.mark.parametrize(("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp", "FSDP")])
def test_accelerate_reads_every_key(name, kind):
    """A key that accelerate does not know would be an error; the recipe's batch leaves the number of GPUs open."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))

    assert config.distributed_type == DistributedType(kind)
    assert (config.num_processes, config.num_machines, config.use_cpu) == (8, 1, False)


def test_the_shards_are_set_up_as_the_file_says(monkeypatch):
    """Each key reaches accelerate's plug-in by the variable that `accelerate launch` sets for it."""
    told = yaml.safe_load((FOLDER / "fsdp.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    for key, value in told.items():
        monkeypatch.setenv(key.upper(), str(value))
    plugin = FullyShardedDataParallelPlugin()

    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.activation_checkpointing is False
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
    assert plugin.cpu_ram_efficient_loading is True
