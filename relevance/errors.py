"""Every error this project raises on purpose.

RelevanceError
├── InputError            what a caller gave us is wrong; the message says expected, found and where
│   ├── RowError          one row of a pairs file (file, row number, column)
│   ├── LabelError        a label or label scheme
│   ├── RecipeError       a training recipe
│   ├── QueryTooLongError a query of more tokens than the bundle's limit
│   ├── PolicyError       a tier policy or a locale's cut points
│   ├── SettingsError     a setting of the service
│   └── RequestError      a request to the service
│       ├── MalformedBodyError    not JSON in UTF-8
│       ├── MediaTypeError        a body of another content type or encoding
│       ├── UnauthorisedError     no valid API key
│       ├── BodyTimeoutError      a body that did not arrive in time
│       ├── EmptyRequestError     no items
│       ├── TooLargeError         more bytes or items than the limit
│       ├── SchemaError           JSON that breaks the schema, with pointers
│       └── NotOfferedError       an option this bundle cannot serve
├── BundleError           a bundle that must not be served
│   ├── BundleVersionError    a schema version this code does not read
│   ├── BundleIntegrityError  a missing, truncated or edited file
│   └── ParityError           outputs differ from the golden pairs or between precisions
├── ServiceError          the service cannot answer a sound request now
│   ├── NotReadyError         starting, draining or failed
│   ├── OverloadError         shed by admission; says when to come back
│   ├── DeadlineError         not one item was scored in time
│   ├── ClientGoneError       the client closed the connection before its answer
│   ├── ReloadError           a reload or rollback that was refused; what ran before still runs
│   └── EngineError           the session raised
├── RunError              a run directory that cannot be used or resumed
└── CollapseError         training produced nothing usable: one answer for every pair, or no numbers
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


class SettingsError(InputError):
    """A setting of the service that is unknown, out of range or impossible on this machine."""


class RequestError(InputError):
    """A request that is wrong in itself: the same request will never be answered."""


class MalformedBodyError(RequestError):
    """A body that is not JSON in UTF-8."""


class MediaTypeError(RequestError):
    """A body of another content type or content encoding than the service reads."""


class UnauthorisedError(RequestError):
    """A request without a valid API key, where keys are configured."""


class BodyTimeoutError(RequestError):
    """A body that did not arrive within the time limit."""


class EmptyRequestError(RequestError):
    """A request without items."""


class TooLargeError(RequestError):
    """A body or a list of items over the limit; the message names the limit."""


class SchemaError(RequestError):
    """JSON that breaks the schema.

    Args: problems: (JSON pointer, what was expected) of each fault; never what came.
    """

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        pointer, message = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{pointer or '/'}: {message}{more}")
        self.problems = problems


class NotOfferedError(RequestError):
    """An option of the API that this bundle or this release cannot serve."""


class BundleError(RelevanceError):
    """A bundle that must not be served."""


class BundleVersionError(BundleError):
    """A bundle, calibrator or policy of a schema version this code does not read."""


class BundleIntegrityError(BundleError):
    """A bundle file that is missing, truncated, edited or unlisted."""


class ParityError(BundleError):
    """Outputs differ from the golden pairs, or between precisions, by more than the stated tolerance."""


class ServiceError(RelevanceError):
    """The service cannot answer a sound request now; a later try may succeed."""


class NotReadyError(ServiceError):
    """The service is starting, draining or has failed to start."""


class OverloadError(ServiceError):
    """A request shed by admission.

    Args: wait_s: estimated wait until there is room.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class DeadlineError(ServiceError):
    """The deadline passed before a single item was scored."""


class ClientGoneError(ServiceError):
    """The client closed the connection before its answer; nobody is left to read a response."""


class ReloadError(ServiceError):
    """A reload or rollback that was refused; what was served before is served still."""


class EngineError(ServiceError):
    """The session raised while it ran a batch of this request."""


class RunError(RelevanceError):
    """A run directory that cannot be used or resumed."""


class CollapseError(RelevanceError):
    """Training produced nothing usable: the same answer for every pair, or weights that are no numbers."""
