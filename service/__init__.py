"""Online: the HTTP service over a bundle. Never imports torch or transformers."""
