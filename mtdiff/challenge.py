"""A challenge for a class: whose model says most about digits and their labels, after the same time to learn."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from mtdiff.datasets import Dataset, digits


@dataclass(frozen=True)
class Entry:
    """A model in the challenge: its file, the bound on log p(image, label) in nats with its error, and what bars it."""

    who: str
    nats: float = -math.inf
    stderr: float = math.nan
    agreement: float = math.nan
    seconds: float = math.nan
    barred: str = ""


def board(folder: Path, minutes: float = 10.0) -> list[Entry]:
    """The models of a folder of JSON files from `mtdiff evaluate image-label --data digits`, best bound first.

    Barred, and last, is what took more than so many minutes on one thread, learned from other data, or began with a trained
    model; and what is no such file.

    Raises:
        ValueError: there is no JSON file.
    """
    learned = digits("train")
    found = [entry for path in sorted(Path(folder).glob("*.json")) for entry in _entries(path, 60 * minutes, learned)]
    if not found:
        raise ValueError(f"there are no JSON files in {folder}")
    return sorted(found, key=lambda entry: (bool(entry.barred), -entry.nats, entry.who))


def _entries(path: Path, most: float, learned: Dataset) -> Iterator[Entry]:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        for k, run in enumerate(runs):
            who, card, metrics = f"{path.stem}{f' {k + 1}' * (len(runs) > 1)}", run["card"], run["metrics"]
            threads, seconds = card["provenance"]["threads"], card["training"]["wall_seconds"]
            reasons = {
                f"{seconds:.0f} s on {threads} thread(s), {most:.0f} s are allowed on one": threads != 1 or seconds > most,
                "trained on other data than digits/train": not learned.has_hash(card["data"]["sha256"]),
                "began with a trained model": "based on" in card,
            }
            barred = "; ".join(reason for reason, holds in reasons.items() if holds)
            bound = metrics["bound"]
            yield Entry(who, bound["joint"], bound["joint_stderr"], metrics["joint"]["agreement"], seconds, barred)
    except (ValueError, KeyError, TypeError) as error:
        why = f"no result of mtdiff evaluate image-label --data digits ({shorten(repr(error), 300)})"
        yield Entry(path.stem, barred=why)
