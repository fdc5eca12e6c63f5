"""Settings of the API, in order of precedence: flags, `FOLEY_API_*` environment variables, a TOML file."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, HttpUrl, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliApp,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from foley.container import Limits
from foley.errors import SettingError

_CHECKOUT = Path(__file__).resolve().parents[3]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Mebibytes = Annotated[int, Field(ge=1, le=2**20)]


class Settings(BaseSettings):
    """Serve the public gRPC API of Video-Foley: generate sound for videos.

    Starts and supervises a Triton server, or connects to a running one. Shuts down gracefully on SIGTERM. Listens on
    the loopback interface by default; other addresses need TLS, and tokens or client certificates.
    """

    model_config = SettingsConfigDict(
        env_prefix="FOLEY_API_",
        extra="forbid",
        frozen=True,
        cli_prog_name="foley-server api",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    config: Path | None = Field(None, description="TOML file with any of these settings, named with underscores.")
    bundle: Path = Field(_CHECKOUT / "bundles" / "demo", description="Folder of the bundle to serve.")
    models: Path = Field(_CHECKOUT / "model_repository", description="Folder of the hand-written models.")
    triton: list[str] = Field(
        [],
        description="HOST:PORT of a running Triton to use instead of starting one, or dns:///NAME:PORT for all "
        "addresses of a name; may be repeated.",
    )

    address: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the API; 0 picks a free one.")
    metrics_address: str = Field("127.0.0.1", description="Address of the Prometheus metrics.")
    metrics_port: int = Field(8081, ge=0, le=65535, description="Port of the Prometheus metrics; 0 picks a free one.")
    tls_certificate: Path | None = Field(None, description="Certificate chain of the server, PEM; enables TLS.")
    tls_key: Path | None = Field(None, description="Private key of the certificate, PEM.")
    tls_client_ca: Path | None = Field(None, description="CA of client certificates, PEM; enables mutual TLS.")
    tokens: Path | None = Field(None, description="TOML file of token hashes; see `foley-server token`.")
    anonymous: bool = Field(
        False,
        description="Allow calls without a token on addresses other than loopback; whoever reaches them has access.",
    )
    plaintext: bool = Field(
        False, description="Allow addresses other than loopback without TLS, behind a proxy that terminates TLS."
    )

    studio: bool = Field(False, description="Also serve the studio, a web page for editing envelopes.")
    studio_address: str = Field("127.0.0.1", description="Address of the studio.")
    studio_port: int = Field(8090, ge=0, le=65535, description="Port of the studio; 0 picks a free one.")
    studio_host: list[str] = Field(
        [], description="Additional host names of the studio, besides localhost and its address."
    )
    studio_examples: Path = Field(_CHECKOUT / "examples", description="Folder of example videos for the studio.")

    data: Path = Field(
        Path("foley-data"),
        description="Folder of this process: uploads in progress, cached results, and by default the jobs.",
    )
    store: str | None = Field(
        None,
        description="Database of jobs, shared by all API processes: sqlite:///PATH or postgresql://USER@HOST/DATABASE; "
        "by default a SQLite file in --data.",
    )
    media: str | None = Field(
        None,
        description="Storage of media, shared by all API processes: a folder, or s3://BUCKET/PREFIX; "
        "by default `media` in --data.",
    )
    keep_results: float = Field(
        7 * 86_400, gt=0, description="Seconds to keep a long-running generation after it ended."
    )

    running: int = Field(4, ge=1, le=256, description="Number of jobs that this process runs concurrently.")
    waiting: int = Field(
        16, ge=0, le=10_000, description="Maximum number of further jobs for which callers of this process wait."
    )
    stored: int = Field(1_000, ge=0, le=1_000_000, description="Maximum number of queued jobs.")
    owner_stored: int = Field(200, ge=0, le=1_000_000, description="Maximum number of queued jobs of one token.")
    media_mib: Mebibytes = Field(20_480, description="Maximum size of all stored media, in MiB.")
    owner_mib: Mebibytes = Field(4_096, description="Maximum size of the stored media of one token, in MiB.")
    reserve_mib: Mebibytes = Field(512, description="Free space of --data below which uploads are refused, in MiB.")
    max_steps: int = Field(200, ge=1, le=1_000, description="Maximum number of denoising steps of a request.")
    request_timeout: Seconds = Field(3_600, description="Time limit of a job, from its start, in seconds.")
    upload_timeout: Seconds = Field(600, description="Time limit of an upload, in seconds.")
    hang_timeout: Seconds = Field(
        300, description="Seconds after which Triton is restarted if a model with pending calls does not respond."
    )
    grace: Seconds = Field(60, description="Seconds for running requests to finish after SIGTERM.")

    upload_mib: Mebibytes = Field(512, description="Maximum size of an uploaded file, in MiB.")
    duration: float = Field(120, gt=0, le=600, description="Maximum seconds of a video, a recording or an envelope.")
    sound: float = Field(
        600, gt=0, le=9_600, description="Maximum seconds of sound per request, summed over variations."
    )
    pixels: int = Field(4096 * 2304, ge=1, description="Maximum pixels per frame.")
    frames: int = Field(240 * 120, ge=2, description="Maximum frames per video, displayed or not.")
    streams: int = Field(16, ge=1, description="Maximum streams per file.")
    packets: int = Field(200_000, ge=1, description="Maximum packets per file.")
    sandbox: Literal["auto", "strict"] = Field(
        "auto", description="strict: do not start unless the kernel isolates the decoder process completely."
    )
    decoders: int | None = Field(
        None, ge=1, le=1_024, description="Maximum number of decoder processes at once; by default `running` + 1."
    )
    decoder_mib: Mebibytes = Field(2_048, description="Address space of the decoder process, in MiB.")
    decoder_cpu: Seconds = Field(120, description="CPU time of the decoder process, in seconds.")
    decoder_wall: Seconds = Field(180, description="Total time to wait for the decoder process, in seconds.")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log messages."
    )
    trace: HttpUrl | None = Field(
        None, description="OTLP/HTTP endpoint for traces, such as http://localhost:4318/v1/traces."
    )
    trace_share: float = Field(1.0, ge=0, le=1, description="Fraction of requests to trace.")
    until_stdin_closes: bool = Field(False, description="Stop when standard input closes.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of precedence; flags precede them."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator("media")
    @classmethod
    def _check_location(cls, media: str | None) -> str | None:
        if media and "://" in media and urlsplit(media).scheme != "s3":
            raise ValueError("the storage is not supported; use a folder, or s3://BUCKET/PREFIX")
        return media

    @model_validator(mode="after")
    def _check_combinations(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be set together; set both or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs TLS; set tls_certificate and tls_key, too")
        if self.anonymous and self.tokens:
            raise ValueError("anonymous and tokens exclude each other; remove one")
        is_authenticated = self.tokens or self.tls_client_ca
        for address in (self.address, self.studio_address):
            if address in _LOOPBACK:
                continue
            if not self.tls_certificate and not self.plaintext:
                raise ValueError(f"{address} is not loopback and needs TLS; set tls_certificate and tls_key")
            if not is_authenticated and not self.anonymous:
                raise ValueError(
                    f"{address} is not loopback, so callers must identify themselves; set tokens or tls_client_ca, "
                    "or anonymous to give everyone access"
                )
        for path in (self.tls_certificate, self.tls_key, self.tls_client_ca, self.tokens):
            if path and not path.is_file():
                raise ValueError(f"there is no file {path}; check the path")
        return self

    @property
    def limits(self) -> Limits:
        """Limits for uploaded media."""
        return Limits(
            bytes=self.upload_mib * 2**20,
            duration_s=self.duration,
            pixels=self.pixels,
            frames=self.frames,
            samples=round(2 * 192_000 * self.duration),
            packets=self.packets,
            streams=self.streams,
        )

    @property
    def store_url(self) -> str:
        """URL of the database of jobs."""
        return self.store or f"sqlite:///{(self.data / 'generations.sqlite').absolute()}"

    @property
    def media_location(self) -> str:
        """Location of media: the path of a folder, or the URL of a bucket."""
        return self.media or str(self.data / "media")


def load(arguments: Sequence[str]) -> Settings:
    """Load the settings from flags, the environment and the TOML file that one of these names.

    Args:
        arguments: Command-line flags.

    Raises:
        SettingError: A setting is not valid; the message is one sentence that lists all of them.
        SystemExit: `--help` was given; the help text is printed.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", default=os.environ.get("FOLEY_API_CONFIG"))
    file = finder.parse_known_args(arguments)[0].config
    if file is not None and not Path(file).is_file():
        raise SettingError(f"there is no settings file {file}; check the path")

    class FromFile(Settings):
        __doc__ = Settings.__doc__
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return CliApp.run(FromFile, cli_args=list(arguments), cli_exit_on_error=False)
    except ValidationError as error:
        raise SettingError("; ".join(map(_describe, error.errors()))) from error
    except SettingsError as error:
        raise SettingError(f"{error}; see `foley-server api --help`") from error
    except ValueError as error:  # the file is not valid TOML
        raise SettingError(f"{file} is not valid TOML ({error}); correct it") from error


def _describe(error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
