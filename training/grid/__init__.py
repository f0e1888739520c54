"""Systems × seeds on one set of pairs: running them, comparing them, reporting them."""
