"""The command line, over the same experiments as the notebooks. What a command needs is imported when it is called."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from mtdiff import __version__

COMMANDS = {
    "train": "Train one variant of an experiment; the same command again goes on where it stopped.",
    "sample": "Draw from a trained model into a picture, with some modalities given if you like.",
    "restore": "Restore a degraded picture: denoise, deblur, enlarge, colour, brighten or dehaze it, or fill its holes.",
    "evaluate": "Judge trained models (several seeds of one variant are averaged) and write the figures as JSON.",
    "list": "Say what there is: experiments with their data and variants, and the models that come with mtdiff.",
    "info": "Say what a model is: its modalities and their curves, how it was trained, and how good it is.",
    "export": "Write what a model predicts as an ONNX graph, and the tables that a sampler needs as JSON beside it.",
    "data": "Fetch real images and pack them for training.",
    "course": "Hand the course out, for students or for teachers, grade what returns, or be asked about it.",
}
"""{name: what it does}; a class of this name, in capitals, does it."""


def command(name: str) -> type:
    """The class behind a command."""
    module = "listing" if name == "list" else name
    return getattr(importlib.import_module(f"mtdiff.cli.{module}"), name.title())


def parsed(words: list[str]):
    """The command that was typed; prints help or the version, or refuses, without importing what it does not need."""
    if words and words[0] in COMMANDS:
        import tyro

        return tyro.cli(command(words[0]), prog=f"mtdiff {words[0]}", args=words[1:])
    if words and words[0].startswith("--tyro-"):  # the completion of a shell
        import tyro

        return tyro.extras.subcommand_cli_from_dict({name: command(name) for name in COMMANDS}, prog="mtdiff", args=words)
    parser = argparse.ArgumentParser(
        "mtdiff",
        usage="mtdiff COMMAND [OPTIONS], or mtdiff COMMAND --help",
        description="Train, sample and judge multi-modal diffusion models.",
    )
    parser.add_argument("--version", action="version", version=f"mtdiff {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser.parse_args(words)


def check(command) -> None:
    """Refuse numbers out of the command's LIMITS, and places that cannot be written, before anything is computed."""
    for field, value in vars(command).items():
        option = f"--{field.replace('_', '-')}"
        low, high = getattr(command, "LIMITS", {}).get(field, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            raise ValueError(f"{option} must be in {low}..{high}, got {value}")
        if field in ("out", "publish") and value is not None:
            check_place(option, value, field not in getattr(command, "FILES", ()))


def check_place(option: str, path: Path, folder: bool) -> None:
    """Refuse a path where no file, or no folder, can come to be."""
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise ValueError(f"{option} {path} is there, and is no {'folder' if folder else 'regular file'}")
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not above.is_dir() and above != path.absolute():
        raise ValueError(f"{option} {path} cannot be made: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{option} {path} cannot be written: no permission at {above}")


def refuse(message: str) -> NoReturn:
    """End with one line on the standard error stream, and status 2."""
    end = SystemExit("mtdiff: error: " + " ".join(message.split()))
    print(end, file=sys.stderr)
    end.code = 2
    raise end


def main() -> None:
    """Entry point: errors that a user can mend are one line and status 2, without a traceback."""
    given, threads = parsed(sys.argv[1:]), os.environ.get("MTDIFF_THREADS", "")
    import torch

    try:
        if "" in sys.argv[1:]:
            raise ValueError("an argument is empty")
        if threads and not (threads.isdecimal() and 1 <= int(threads) <= 1024):
            raise ValueError(f"MTDIFF_THREADS must be a number of threads, got {threads!r}")
        if threads:
            torch.set_num_threads(int(threads))
        given = getattr(given, "action", given)
        check(given)
        given.run()
    except KeyboardInterrupt as stopped:
        sys.exit(f"\nmtdiff: {stopped.args[0] if stopped.args else 'stopped'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        text = (str(error) or "too much is asked for").splitlines()[0]
        refuse(text if "accumulate" in text else f"out of memory; try a smaller --n ({text})")
    except (ValueError, KeyError, OSError, ImportError, FloatingPointError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        if isinstance(error, KeyError) and " " not in text:  # a name that the program did not find: its own mistake
            raise
        refuse(text)
