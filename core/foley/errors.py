"""Every error that a user of this project can meet, with its exit code and gRPC status.

    FoleyError                 exit 1    INTERNAL
    ├── InvalidInput           exit 2    INVALID_ARGUMENT
    │   ├── MediaError                   the file cannot be used as video or sound
    │   │   └── MediaTooLarge            ... because it passes a limit
    │   ├── EnvelopeError                a loudness curve that cannot be used
    │   ├── CheckpointError              published files that no bundle can be made of
    │   └── SettingError                 an option outside its range
    ├── OutputError            exit 2    FAILED_PRECONDITION   the result cannot be written
    ├── BundleError            exit 2    FAILED_PRECONDITION   a bundle is missing, incomplete or damaged
    ├── ServerUnavailable      exit 2    UNAVAILABLE           no server answers, or it is not ready
    │   └── MediaUnavailable             ... because the place where it keeps media does not answer
    ├── Overloaded             exit 2    RESOURCE_EXHAUSTED    the server's queue is full
    │   └── RateLimited                  ... or the caller's own share of it
    ├── Unauthenticated        exit 2    UNAUTHENTICATED       no token, or one that the server does not know
    ├── Forbidden              exit 2    PERMISSION_DENIED     a token without the scope
    ├── NotFound               exit 2    NOT_FOUND             no such generation, or somebody else's
    ├── AlreadyExists          exit 2    ALREADY_EXISTS        a request id that stands for another request
    ├── NotFinished            exit 2    FAILED_PRECONDITION   a generation that is still being made
    ├── TimedOut               exit 2    DEADLINE_EXCEEDED     the work took longer than it was given
    ├── DownloadError          exit 2    UNAVAILABLE           a published file cannot be had from its home
    ├── ServerFailure          exit 1    INTERNAL              the server answered with an error
    └── Cancelled              exit 130  CANCELLED             the user stopped the work

Messages are one sentence that says what is wrong and what to do about it.
"""

from typing import ClassVar


class FoleyError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    field: str | None = None
    """Of a request over the network: the path of the field that is to blame."""
    retry_after_s: float | None = None
    """After how many seconds it makes sense to try again; None: it does not."""


class InvalidInput(FoleyError):
    """What the user gave cannot be used."""

    exit_code = 2
    grpc_status = "INVALID_ARGUMENT"


class MediaError(InvalidInput):
    """A media file that is not what it should be: no video stream, damaged, not media at all."""


class MediaTooLarge(MediaError):
    """A media file that passes one of the limits of `foley.media.Limits`."""


class EnvelopeError(InvalidInput):
    """A loudness curve with a wrong length, values that are not finite, or negative values."""


class CheckpointError(InvalidInput):
    """Weights or a tokenizer that are missing, damaged, or those of another model."""


class SettingError(InvalidInput):
    """A setting outside its range, or two settings that exclude each other."""


class OutputError(FoleyError):
    """The result cannot be written where the user wants it."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class BundleError(FoleyError):
    """A bundle that is missing, incomplete or damaged; the message names the file."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class ServerUnavailable(FoleyError):
    """No server answers at the address, or it is not ready."""

    exit_code = 2
    grpc_status = "UNAVAILABLE"


class MediaUnavailable(ServerUnavailable):
    """The place where the server keeps media does not answer."""


class DownloadError(FoleyError):
    """A published file cannot be downloaded, or what was downloaded is not that file."""

    exit_code = 2
    grpc_status = "UNAVAILABLE"


class Overloaded(FoleyError):
    """The server has as much to do as it takes on."""

    exit_code = 2
    grpc_status = "RESOURCE_EXHAUSTED"


class RateLimited(Overloaded):
    """The caller has as much under way, or asked as often, as its token may."""


class Unauthenticated(FoleyError):
    """There is no token, or the server does not know it."""

    exit_code = 2
    grpc_status = "UNAUTHENTICATED"


class Forbidden(FoleyError):
    """The token lacks the scope that the call needs."""

    exit_code = 2
    grpc_status = "PERMISSION_DENIED"


class NotFound(FoleyError):
    """There is no such generation, or it is not the caller's."""

    exit_code = 2
    grpc_status = "NOT_FOUND"


class AlreadyExists(FoleyError):
    """The request id was given to another request before."""

    exit_code = 2
    grpc_status = "ALREADY_EXISTS"


class NotFinished(FoleyError):
    """The generation is still being made."""

    exit_code = 2
    grpc_status = "FAILED_PRECONDITION"


class TimedOut(FoleyError):
    """The work took longer than it was given."""

    exit_code = 2
    grpc_status = "DEADLINE_EXCEEDED"


class ServerFailure(FoleyError):
    """The server answered, with an error of its own."""


class Cancelled(FoleyError):
    """The user stopped the work before it was done."""

    exit_code = 130
    grpc_status = "CANCELLED"
