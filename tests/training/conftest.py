"""A fine-tuned tiny teacher, for the tests of its stage."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Matrices this small gain nothing from a second thread, and wait for it where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The stages before sft, finished."""
    from sft_runs import make_earlier

    return make_earlier(tmp_path_factory.mktemp("earlier"))


@pytest.fixture(scope="module")
def tuned(earlier, one_thread, tmp_path_factory):
    """A run whose sft has finished."""
    from sft_runs import start

    from training.teacher.sft import fit_policy

    run = start(earlier, tmp_path_factory.mktemp("whole"))
    fit_policy(run)
    return run
