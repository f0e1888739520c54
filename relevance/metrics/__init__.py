"""Quality measures in plain numpy: classification, ranking, reliability, drift and intervals."""
