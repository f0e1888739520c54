"""Rationales and their embeddings."""
