"""The student: a BERT cross-encoder with a latent reasoning extractor."""
