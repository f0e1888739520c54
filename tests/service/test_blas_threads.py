"""The threads of numpy's products: `relevance serve` leaves the cores to its engines."""

from __future__ import annotations

import json
import subprocess
import sys

_SERVE = """
import json, sys
import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
import service.__main__ as serve

threadpool_limits(limits=2, user_api="blas")
counts = lambda: [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
before = counts()

def create_app(*_, **__):
    print(json.dumps([before, counts()]))
    sys.exit(0)

serve.create_app = create_app
serve.main([])
"""


def test_numpy_multiplies_on_one_thread():
    """A product of 0.2 ms takes twenty where a second thread of its own waits for a core that an engine holds."""
    ran = subprocess.run([sys.executable, "-c", _SERVE], capture_output=True, text=True, check=True, timeout=60)
    before, after = json.loads(ran.stdout)

    assert before == [2] * len(before)
    assert after == [1] * len(before)
    assert before
