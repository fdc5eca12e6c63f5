"""Command-line options generated from the models of `foley.options`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from foley.options import RANDOM_SEED, Option, Options, describe

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options(model: type[Options]) -> Callable[[Command], Command]:
    """Replace the `**options` parameter of a command with one parameter for each option of `model`.

    The values passed to the command are not validated; `model(**options)` validates them.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        written = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        made = [_parameter(option, model) for option in describe(model)]
        command.__signature__ = signature.replace(parameters=[*written, *made])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(option: Option, model: type[Options]) -> inspect.Parameter:
    flag = "--" + option.name.replace("_", "-")
    help = option.help if option.choices else f"{option.help} {option.values[0].upper()}{option.values[1:]}."
    shown = "the profile's" if option.default is None else option.default != ""
    typed = model.model_fields[option.name].annotation
    metavar = "LOW HIGH" if option.is_pair else "INTEGER|random" if option.name == "seed" else None
    parser = _seed if option.name == "seed" else None
    declared = typer.Option(flag, help=help, show_default=shown, metavar=metavar, parser=parser)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=option.default,
        annotation=Annotated[typed, declared],
    )


def _seed(text: str) -> int:
    if text.lower() == "random":
        return RANDOM_SEED
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a seed; use a whole number, or `random`") from error
