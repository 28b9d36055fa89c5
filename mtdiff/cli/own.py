"""Parts of one's own on the command line: modules that are imported because the command says so."""

import ast
import importlib
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Annotated

import tyro

from mtdiff.backbones import Backbone, DiT
from mtdiff.experiments.base import Make

Imports = Annotated[
    tuple[str, ...],
    tyro.conf.arg(name="import", help="Modules of your own, here or on the path, whose classes the model is made of."),
]
"""The option --import."""


def imported(names: Iterable[str], option: str = "--import") -> list[ModuleType]:
    """Modules of the current folder or of the path; ValueError where one cannot be imported, whatever the reason."""
    if os.getcwd() not in sys.path:  # as `python -m` has it, and the script of an installed package does not
        sys.path.insert(0, os.getcwd())
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except Exception as error:
            raise ValueError(f"{option} {name} cannot be imported: {type(error).__name__}: {error}") from None
    return found


def chosen_backbone(name: str) -> Make:
    """What makes the backbone of this name, or MODULE:CLASS, with what stands in parentheses; of the U-Net its arguments."""
    which, options = _called(name)
    if which == "unet":
        return options
    home, _, kind = which.partition(":")
    if which == "dit":
        made = DiT
    elif home and kind:
        (module,) = imported([home], "--backbone")
        made = getattr(module, kind, None)
        if not isinstance(made, type) or not issubclass(made, Backbone):
            problem = "is no mt.Backbone" if hasattr(module, kind) else f"is not in {module.__file__}"
            raise ValueError(f"--backbone {name}: {kind} {problem}")
    else:
        raise ValueError(f"--backbone must be unet, dit or MODULE:CLASS, got {name!r}")

    def make(space: tuple[int, ...]) -> Backbone:
        try:
            return made(space, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--backbone {name} does not take the space {space}: {error}") from None

    return make


def _called(text: str) -> tuple[str, dict]:
    """NAME and the values of "NAME(argument=value, ...)", as Python writes them."""
    which, bracket, rest = text.partition("(")
    try:
        call = ast.parse(f"f({rest}" if bracket else "f()", mode="eval").body
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        if call.args or None in options or not isinstance(call.func, ast.Name):
            raise ValueError
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(f"--backbone {text!r}: write NAME, or NAME(argument=value, ...)") from None
    return which, options
