"""User-facing errors, with their exit codes and gRPC status codes.

    FoleyError                 exit 1    INTERNAL
    ├── InvalidInput           exit 2    INVALID_ARGUMENT
    │   ├── MediaError                   the file cannot be used as video or audio
    │   │   └── MediaTooLarge            ... because it exceeds a limit
    │   ├── EnvelopeError                the envelope is invalid
    │   ├── CheckpointError              the published files cannot be converted into a bundle
    │   └── SettingError                 an option is out of range, or options conflict
    ├── OutputError            exit 2    FAILED_PRECONDITION   the result cannot be written
    ├── BundleError            exit 2    FAILED_PRECONDITION   a bundle is missing, incomplete or damaged
    ├── ServerUnavailable      exit 2    UNAVAILABLE           the server cannot be reached, or is not ready
    │   ├── MediaUnavailable             ... because its media storage cannot be reached
    │   └── DatabaseUnavailable          ... because its database cannot be reached
    ├── Overloaded             exit 2    RESOURCE_EXHAUSTED    the server's queue is full
    │   └── RateLimited                  ... or the caller's quota is used up
    ├── Unauthenticated        exit 2    UNAUTHENTICATED       the token is missing or unknown
    ├── Forbidden              exit 2    PERMISSION_DENIED     the token lacks the required scope
    ├── NotFound               exit 2    NOT_FOUND             the generation does not exist for this caller
    ├── AlreadyExists          exit 2    ALREADY_EXISTS        the request id belongs to a different request
    ├── NotFinished            exit 2    FAILED_PRECONDITION   the generation is still running
    ├── TimedOut               exit 2    DEADLINE_EXCEEDED     the work exceeded its time limit
    ├── DownloadError          exit 2    UNAVAILABLE           a published file cannot be downloaded
    ├── ServerFailure          exit 1    INTERNAL              the server answered with an internal error
    └── Cancelled              exit 130  CANCELLED             the user cancelled the work

Each message is one sentence that states what is wrong and how to fix it.
"""

from typing import ClassVar


class FoleyError(Exception):
    """Base class of the errors that this project raises deliberately.

    Attributes:
        exit_code: Exit code of the command line.
        grpc_status: Name of the gRPC status code.
        field: Path of the invalid field, for an error in a request to the API.
        retry_after_s: Seconds after which a retry may succeed; None: do not retry.
    """

    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    field: str | None = None
    retry_after_s: float | None = None


class InvalidInput(FoleyError):
    """The user's input is invalid."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class MediaError(InvalidInput):
    """The media file cannot be used: it is damaged, not a media file, or lacks the required stream."""


class MediaTooLarge(MediaError):
    """The media file exceeds one of the limits of `foley.media.Limits`.

    Attributes:
        limit: Name of the limit, an attribute of `Limits`; None: it is not known, as in an error of a server.
    """

    limit: str | None = None


class EnvelopeError(InvalidInput):
    """The envelope has the wrong length, or values that are negative or not finite."""


class CheckpointError(InvalidInput):
    """Weights or a tokenizer are missing, damaged, or belong to a different model."""


class SettingError(InvalidInput):
    """A setting is out of range, or two settings conflict."""


class OutputError(FoleyError):
    """The result cannot be written to the requested destination."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class BundleError(FoleyError):
    """A bundle is missing, incomplete or damaged; the message names the file."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class ServerUnavailable(FoleyError):
    """The server cannot be reached, or is not ready."""

    exit_code = 2
    grpc_status = "UNAVAILABLE"


class MediaUnavailable(ServerUnavailable):
    """The server's media storage cannot be reached."""


class DatabaseUnavailable(ServerUnavailable):
    """The server's database cannot be reached or written."""


class DownloadError(FoleyError):
    """A published file cannot be downloaded, or the download has the wrong checksum."""

    exit_code = 2
    grpc_status = "UNAVAILABLE"


class Overloaded(FoleyError):
    """The server's queue is full."""

    exit_code = 2
    grpc_status = "RESOURCE_EXHAUSTED"


class RateLimited(Overloaded):
    """The caller exceeded its token's limit on concurrent requests or on the request rate."""


class Unauthenticated(FoleyError):
    """The token is missing or unknown."""

    exit_code = 2
    grpc_status = "UNAUTHENTICATED"


class Forbidden(FoleyError):
    """The token lacks the scope that the call requires."""

    exit_code = 2
    grpc_status = "PERMISSION_DENIED"


class NotFound(FoleyError):
    """The generation does not exist, or belongs to another caller."""

    exit_code = 2
    grpc_status = "NOT_FOUND"


class AlreadyExists(FoleyError):
    """The request id was already used for a different request."""

    exit_code = 2
    grpc_status = "ALREADY_EXISTS"


class NotFinished(FoleyError):
    """The generation is still running."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class TimedOut(FoleyError):
    """The work exceeded its time limit."""

    exit_code = 2
    grpc_status = "DEADLINE_EXCEEDED"


class ServerFailure(FoleyError):
    """The server answered with an internal error."""


class Cancelled(FoleyError):
    """The user cancelled the work."""

    exit_code = 130
    grpc_status = "CANCELLED"
