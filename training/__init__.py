"""Offline: labelled pairs → rationales → CoT embeddings → student → calibrator and policy. torch lives here."""
