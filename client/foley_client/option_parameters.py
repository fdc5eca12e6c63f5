"""Command-line options generated from the models of `foley.options`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from foley.options import Option, Options, describe

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(model: type[Options]) -> Callable[[Command], Command]:
    """Replace the `**options` parameter of a command with one parameter for each option of `model`.

    The values are passed as text, which `model(**options)` converts and validates, so that its sentences apply.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        written = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [_parameter(option) for option in describe(model)]
        command.__signature__ = signature.replace(parameters=[*written, *made])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(option: Option) -> inspect.Parameter:
    help = option.help if option.choices else f"{option.help} {option.values[0].upper()}{option.values[1:]}."
    if option.is_pair:
        metavar = "LOW HIGH"
    elif option.choices:
        metavar = "|".join(option.choices)
    else:
        metavar = "TEXT" if option.low is None else "NUMBER|random" if option.name == "seed" else "NUMBER"
    declared = typer.Option(
        "--" + option.name.replace("_", "-"),
        help=help,
        metavar=metavar,
        show_default="the profile's" if option.default is None else option.default != "",
        autocompletion=lambda: option.choices,
    )
    typed = tuple[str, str] if option.is_pair else str
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if option.default is None else str(option.default),
        annotation=Annotated[typed | None, declared],
    )
