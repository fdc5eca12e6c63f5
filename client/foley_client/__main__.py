"""Entry point of `foley` and of `python -m foley_client`."""

from foley import command
from foley_client.extras import require


def _program() -> None:
    require("the command line", "cli", "typer", "rich")
    from foley_client.cli import app

    app(prog_name="foley")


def main() -> None:
    """Run the `foley` command line."""
    command.run(_program)


if __name__ == "__main__":
    main()
