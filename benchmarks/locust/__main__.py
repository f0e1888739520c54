"""`make load`: the load test against a service of its own on the embedded default bundle, or against a given host.

Starts the service, runs Locust on `locustfile.py` without its web page, stops the service; writes `report.html` and
`load.json`, and exits with a status other than 0 when a threshold was broken. What it does not know goes to Locust.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.servers import PROJECT, Server

OWN = ("--min-cached", "0.95")
"""Of a service that is started here: one replica with its cache, which nobody has asked before."""
QUICK = ("--sizes", "5", "20", "60", "--schedule-s", "4", "--calibrate-s", "0.5", "--min-goodput", "0")
"""An overload of less than a second says nothing of goodput."""


def main(argv: Sequence[str]) -> int:
    """Run the load test; gives Locust's exit status."""
    parser = ArgumentParser(
        prog="python -m benchmarks.locust", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", help="address of a running service; default: one is started and stopped")
    parser.add_argument("--bundle", type=Path, help="of the service that is started; default: the embedded one")
    parser.add_argument("--out", type=Path, default=Path("runs/load"), help="folder (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that the program works")
    arguments, rest = parser.parse_known_args(argv)
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        host = arguments.host
        if host is None:
            host = f"http://127.0.0.1:{stack.enter_context(Server(arguments.bundle)).port}"
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py"))]
        command += ["--headless", "--only-summary", "--host", host.rstrip("/")]
        command += ["--html", str(out / "report.html"), "--figures", str(out / "load.json")]
        command += [*(OWN if arguments.host is None else ()), *(QUICK if arguments.quick else ()), *rest]
        return subprocess.run(command, cwd=PROJECT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
