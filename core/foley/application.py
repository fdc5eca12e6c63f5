"""Common parts of this project's command lines. Requires typer, a dependency of each of them."""

from typing import Annotated

import typer

from foley import __version__


def application(summary: str) -> typer.Typer:
    """Return a typer application with `--help`, `-h` and `--version`; the caller adds the commands.

    Args:
        summary: One sentence for `--help`.
    """
    app = typer.Typer(
        help=summary,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
        ] = False,
    ) -> None:
        pass

    return app


def _show_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(f"{context.find_root().info_name} {__version__}")
        raise typer.Exit
