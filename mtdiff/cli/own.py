"""Parts of one's own on the command line: modules that are imported because the command says so."""

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


def chosen_backbone(name: str) -> Make | None:
    """What makes the backbone of this name, or MODULE:CLASS; None for the U-Net of the experiment."""
    if name in ("unet", "dit"):
        return DiT if name == "dit" else None
    home, _, which = name.partition(":")
    if not home or not which:
        raise ValueError(f"--backbone must be unet, dit or MODULE:CLASS, got {name!r}")
    (module,) = imported([home], "--backbone")
    kind = getattr(module, which, None)
    if not isinstance(kind, type) or not issubclass(kind, Backbone):
        problem = "is no mt.Backbone" if hasattr(module, which) else f"is not in {module.__file__}"
        raise ValueError(f"--backbone {name}: {which} {problem}")

    def make(space: tuple[int, ...]) -> Backbone:
        try:
            return kind(space)
        except (TypeError, ValueError) as error:
            raise ValueError(f"--backbone {name} does not take the space {space}: {error}") from None

    return make
