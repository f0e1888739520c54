"""How a bundle treats pairs that have nothing to do with each other: queries with other queries' items.

The labelled pairs hold no such pair, so the evaluation report cannot show it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from relevance.bundle import open_bundle
from relevance.labels import N_TIERS
from relevance.pairs import read_labelled_pairs
from service.model import load_model
from service.settings import DEFAULT_BUNDLE, Settings


def main(argv: list[str]) -> int:
    """Score random pairs of one locale and write results/unrelated.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument(
        "--pairs", type=Path, required=True, help="labelled pairs, for instance a run's pairs.dev.parquet"
    )
    parser.add_argument("--locale", default="us")
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--items", type=int, default=6, help="random items a query")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "unrelated.json")
    arguments = parser.parse_args(argv)
    scheme = open_bundle(arguments.bundle).scheme
    labelled = read_labelled_pairs(arguments.pairs, scheme)
    pairs = [p.pair for p in labelled if p.pair.query.locale == arguments.locale]
    scorer = load_model(Settings(bundle=arguments.bundle)).scorer
    rng = np.random.default_rng(0)
    scored = [
        scorer.score(pairs[i].query.text, [pairs[j].item for j in rng.choice(len(pairs), arguments.items)],
                     locale=arguments.locale)
        for i in rng.choice(len(pairs), min(arguments.queries, len(pairs)), replace=False)
    ]  # fmt: skip
    score, tier, kept = (np.concatenate([getattr(s, name) for s in scored]) for name in ("score_B", "tier_B", "kept_B"))
    result = {
        "bundle": scorer.bundle.manifest.bundle_id,
        "pairs": len(score),
        "score_quantiles": dict(
            zip(("5", "25", "50", "75", "95"), np.quantile(score, (0.05, 0.25, 0.5, 0.75, 0.95)), strict=True)
        ),
        "tier_shares": (np.bincount(tier, minlength=N_TIERS) / len(tier)).tolist(),
        "filtered": float(np.mean(~kept)),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
