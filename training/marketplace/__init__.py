"""What the synthetic marketplace's data and its teachers share: its words, its facts and its rules of relevance."""
