"""Every error this project raises on purpose.

RelevanceError
├── InputError            what a caller gave us is wrong; the message says expected, found and where
│   ├── RowError          one row of a pairs file (file, row number, column)
│   ├── LabelError        a label or label scheme
│   ├── RecipeError       a training recipe
│   ├── QueryTooLongError a query of more tokens than the bundle's limit
│   └── PolicyError       a tier policy or a locale's cut points
├── BundleError           a bundle that must not be served
│   ├── BundleVersionError    a schema version this code does not read
│   ├── BundleIntegrityError  a missing, truncated or edited file
│   └── ParityError           outputs differ from the golden pairs or between precisions
├── RunError              a run directory that cannot be used or resumed
└── CollapseError         training produced a model that gives every pair the same answer
"""

from __future__ import annotations


class RelevanceError(Exception):
    """Root of the tree; catching it catches only what we raise on purpose."""


class InputError(RelevanceError, ValueError):
    """What a caller gave us is wrong; the message says what was expected, what came and where."""


class RowError(InputError):
    """One bad row of a pairs file.

    Args: where: file or source name; row: 1-based row number; column: column name; problem: expected and found.
    """

    def __init__(self, where: str, row: int, column: str, problem: str) -> None:
        super().__init__(f"{where}, row {row}, column {column!r}: {problem}")
        self.where, self.row, self.column, self.problem = where, row, column, problem


class LabelError(InputError):
    """A label outside its scheme, or a scheme that contradicts itself."""


class RecipeError(InputError):
    """A recipe with an unknown key, a wrong type or an impossible value."""


class QueryTooLongError(InputError):
    """A query of more tokens than the limit; queries are never truncated."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"expected a query of at most {limit} tokens, found {tokens}")
        self.tokens, self.limit = tokens, limit


class PolicyError(InputError):
    """A tier policy that contradicts itself or names a class outside the scheme."""


class BundleError(RelevanceError):
    """A bundle that must not be served."""


class BundleVersionError(BundleError):
    """A bundle, calibrator or policy of a schema version this code does not read."""


class BundleIntegrityError(BundleError):
    """A bundle file that is missing, truncated, edited or unlisted."""


class ParityError(BundleError):
    """Outputs differ from the golden pairs, or between precisions, by more than the stated tolerance."""


class RunError(RelevanceError):
    """A run directory that cannot be used or resumed."""


class CollapseError(RelevanceError):
    """Training produced a model that gives every pair the same answer."""
