"""Online: the HTTP service over a bundle. Never imports torch or transformers."""

import os

# Before numpy is imported: after a product of two matrices, of which explanations have some, its BLAS would leave
# threads spinning for tens of milliseconds, on cores that the engines need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
