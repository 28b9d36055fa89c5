"""Seconds of the ten tasks of notebooks/own.md, each as it is typed, in a process of its own.

python tests/benchmarks/tasks.py [--out data/results/own-tasks.json]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits

from mtdiff.files import to_json, write_atomic
from mtdiff.provenance import provenance

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "notebooks" / "own.md"
BEFORE: dict[int, int | str] = {1: 17, 2: 0, 3: 22, 4: 27, 5: 25, 6: 58, 7: 66, 8: 35, 9: 25, 10: "no way"}
"""Lines of own code that a task took, as they were counted."""


def tasks() -> list[tuple[str, str, str]]:
    """(title, language, code) of each."""
    return re.findall(r"^## \d+\. ([^\n]+)\n\n```(\w+)\n(.*?)```", PAGE.read_text(), re.M | re.S)


def own_lines(language: str, code: str) -> int:
    """Lines of Python that a reader writes, those of a module that a command names included."""
    if language == "python":
        return sum(bool(line) for line in code.splitlines())
    return sum(bool(line.strip()) for line in net().splitlines()) if "mine:" in code else 0


def net() -> str:
    """What mine.py needs for task 8, of the README: its network, and imports that this uses."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    network = next(block for block in blocks if "class Net" in block).partition("class Stars")[0]
    return network.removeprefix("import torch\n").replace("from mtdiff.laws import Categorical\n", "")


def table(seconds: list[float]) -> str:
    """The tasks in Markdown."""
    rows = ["| task | lines of own code before | now | seconds |", "|---|---|---|---|"]
    for number, ((title, language, code), each) in enumerate(zip(tasks(), seconds, strict=True), 1):
        rows.append(f"| {number}. {title} | {BEFORE[number]} | {own_lines(language, code)} | {each:.0f} |")
    return "\n".join(rows)


def lay_out(folder: Path) -> None:
    """The files that the tasks begin with: scikit-learn's digits."""
    digits, names = load_digits(), ("zero", "one", "two")
    for k, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < 3 and k < 200:
            pixels = PIL.Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((16, 16))
            for place in (folder / "pictures" / names[label], folder / "captioned"):
                place.mkdir(parents=True, exist_ok=True)
                pixels.save(place / f"{k}.png")
            (folder / "captioned" / f"{k}.txt").write_text(f"a digit {names[label]}")
    (folder / "mine.py").write_text(net())


def main() -> None:
    """Carry the tasks out, and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results" / "own-tasks.json")
    out, seconds = parser.parse_args().out.absolute(), []
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        for title, language, code in tasks():
            words = ["-c", code] if language == "python" else ["-m", *code.split()]
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=folder, env={**os.environ, "MTDIFF_THREADS": "1"}, check=True)
            seconds.append(round(time.perf_counter() - begun, 1))
            print(f"{title}: {seconds[-1]} s", flush=True)
    write_atomic(out, (to_json({"seconds": seconds, "provenance": provenance()}, indent=1) + "\n").encode())
    print(table(seconds))


if __name__ == "__main__":
    main()
