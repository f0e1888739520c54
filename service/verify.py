"""`relevance verify BUNDLE`: check every file of a bundle, then replay its golden pairs through each graph.

A CPU runs every graph; on a GPU only those are opened that the service takes there by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from relevance.bundle import open_bundle
from service.golden import replay
from service.session import ORDERS, OnnxSession, resolve
from service.settings import default_threads


def main(argv: list[str]) -> int:
    """Print what was checked, one line a fact.

    Raises: BundleError: at the first thing that is wrong; the command then ends with exit status 2.
    """
    parser = argparse.ArgumentParser(prog="relevance verify", description=__doc__)
    parser.add_argument("bundle", type=Path, help="bundle directory")
    parser.add_argument("--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu")
    parser.add_argument("--engine-cache", type=Path, help="folder that keeps TensorRT's engines, for a service to find")
    arguments = parser.parse_args(argv)
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    size = sum(entry.size for entry in manifest.files.values())
    _tell(f"bundle {manifest.bundle_id} ({manifest.model_id}), schema {manifest.schema_version}")
    _tell(f"files: {len(manifest.files)} as listed, {size / 1e6:.1f} MB, every sha256 right")
    resolve(bundle, "auto", arguments.provider)
    for precision in sorted(manifest.graphs):
        if not manifest.graphs[precision].gate.passed:
            _tell(f"{precision}: failed its gate at export, never served, not replayed")
            continue
        if arguments.provider != "cpu" and precision not in ORDERS[arguments.provider]:
            _tell(f"{precision}: not served on {arguments.provider}, not replayed")
            continue
        session = OnnxSession(
            bundle,
            precision=precision,
            provider=arguments.provider,
            threads=default_threads(),
            engine_cache=arguments.engine_cache,
        )
        shown = replay(bundle, session, precision, session.profiles)
        _tell(
            f"{precision}: {shown.n_pairs} golden pairs, alone and in two batchings, token ids exact, largest |Δlogit| "
            f"{shown.max_abs_difference:.2g} (tolerance {shown.tolerance:g}), {shown.n_tiers_compared} tiers equal; "
            f"{session.flops_share:.1%} of the FLOPs on {arguments.provider}"
        )
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
