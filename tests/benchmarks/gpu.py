"""All that this project needs a GPU for, in nine minutes of one H100 or H200 each: `make gpu` and `make gpu GPU_PART=2`.

    python tests/benchmarks/gpu.py [--part 1] [--minutes 9] [--device cuda] [--out build/gpu] [--only NAME ...] [--tiny]

Part 1. Speed (at most 3 minutes of 9): `throughput.py`, compiled bf16 steps of three networks at 64x64 beside diffusers',
one network after the other, as far as the time suffices, most of which torch.compile takes. Then the `QUESTIONS` at 16x16
(the rest, about 6 minutes): every variant with three seeds, at most 12 processes side by side, in two waves of about 2
minutes whose learning rates fall by the clock (`mtdiff train --minutes`); a variant is judged as soon as its seeds are
trained and a place is free, the last ones in a minute that is kept for them. Processes compute at the same time where
NVIDIA's multi-process service (MPS) is installed, else in turns.

Part 2. Photographs at 64x64: the `PHOTOGRAPHS` one after the other, about 2.5 minutes each, a minute of which torch.compile
may take, from a packed set in the folder that MTDIFF_DATA names. They are judged afterwards, on a CPU: unpack a file, then
`mtdiff evaluate imagenet --data imagenette64 --models FOLDER`.

What comes back in `--out`: part 1 speed-NETWORK.json, for each question QUESTION.json (one `mtdiff evaluate` of all
variants) and QUESTION-models.zip, part 2 a VARIANT.zip for each; weights are in half precision, beside their history. And
report.txt: how long each process took, and the end of the log of each that failed. One that fails or runs out of time stops
no other.

`--tiny` tries all of it on a CPU in small sizes; `--only speed masked-image/plain` does parts of it.

Packages, where there is no virtual environment: torch, numpy, pillow, safetensors and tqdm; tyro with docstring-parser and
typeguard; for the speed diffusers with importlib-metadata, huggingface-hub, regex and requests. mtdiff itself is taken from
this checkout.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import mtdiff as mt
from mtdiff.experiments.imagenet import FOLDER, packed_folder
from mtdiff.files import CARD, to_json, write_atomic
from mtdiff.reading import read_json
from mtdiff.run_folder import HISTORY

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = {  # {experiment: (samples for each figure, variants)}; the one that takes longer to judge is trained first
    "masked-image": (1000, ("masked", "plain", "augment", "own-channels")),
    "image-transition": (200, ("transition", "conditional", "regression")),
}
DATA, SEEDS, MOST = "shapes16", (0, 1, 2), 12
"""Of the questions; `MOST` processes share the card."""
PHOTOGRAPHS = ("plain", "label", "masked")
NETWORKS = ("small", "transformer", "large")
SPEED = 1 / 3
"""Share of the time that the speed may take."""
START, JUDGE, END = 25.0, 60.0, 20.0
"""Seconds until a process begins to train, to judge the last variants, to write what there is."""
FULL = {
    "speed": ["--modes", "bf16 compiled"],
    "question": ["--budget", "full", "--look-every", 0],
    "photographs": ["--budget", "full", "--look-every", 0, "--precision", "bf16", "--compile"],
}
TINY = {
    "speed": [
        *("--modes", "bf16", "--scale", 4),
        *("--batch", 2, "--rounds", 2, "--repeats", 1, "--matrix", 512),
    ],
    "question": ["--budget", "quick", "--look-every", 0, "--steps", 2, "--batch-size", 8],
    "photographs": ["--budget", "quick", "--look-every", 0, "--precision", "bf16", "--steps", 2, "--batch-size", 4],
}
"""Options of every command, and of its trial on a CPU."""


class Clock:
    """Counts down from so many seconds."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until it is over."""
        return self.end - time.monotonic()


@dataclass(frozen=True)
class Job:
    """A process: `python *words`, once those that it comes after have ended; `judges` those of them that ended well."""

    name: str
    words: Sequence
    after: tuple[str, ...] = ()


def work_through(
    jobs: Collection[Job], folder: Path, environment: Mapping[str, str], clock: Clock, most: int, report: list[str]
) -> set[str]:
    """Run jobs in a folder, at most so many at a time, the first first; those that time is over for are ended.

    Returns the names of those that ended well. What happened to each is added to the report.
    """
    waiting, running, well, ended = list(jobs), {}, set(), set()

    def close(name: str, process: subprocess.Popen, began: float, why: str) -> None:
        ended.add(name)
        well.update([] if why else [name])
        report.append(f"{name}: {why or 'done'}, {time.monotonic() - began:.0f} s")
        report.extend(f"    {line}" for line in tail(log(folder, name), 15 if why else 1))
        print(*report[-16 if why else -2 :], sep="\n", flush=True)

    while (waiting or running) and clock.left > 0:
        for name, (process, began) in list(running.items()):
            if process.poll() is not None:
                del running[name]
                close(name, process, began, f"FAILED with status {process.returncode}" if process.returncode else "")
        for job in [job for job in waiting if ended.issuperset(job.after)][: most - len(running)]:
            waiting.remove(job)
            models = [name for name in job.after if name in well]
            words = [*job.words, *(["--models", *models] if job.after else [])]
            if job.after and not models:
                ended.add(job.name)
                report.append(f"{job.name}: LEFT OUT, nothing it needs is there")
                continue
            with log(folder, job.name).open("wb") as file:
                command = [sys.executable, *map(str, words)]
                process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
            running[job.name] = process, time.monotonic()
        time.sleep(0.1)
    for name, (process, began) in running.items():
        process.kill()
        process.wait()
        close(name, process, began, "STOPPED, time was over")
    report.extend(f"{job.name}: LEFT OUT, time was over" for job in waiting)
    return well


def log(folder: Path, name: str) -> Path:
    """Where a job's output goes."""
    return folder / f"{name.replace('/', '-')}.log"


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a log; of a progress bar the last states."""
    found = path.read_text(errors="replace").replace("\r", "\n").splitlines()
    return [line for line in found if line.strip()][-lines:]


def minutes_each(left: float, turns: int, kept: float = 0.0) -> float:
    """Minutes of training for each of so many turns, one after the other, where so many seconds are left.

    Of those `kept` are for what follows, and each turn takes `START` before it trains. At least 0.05.
    """
    return max(0.05, ((left - kept) / turns - START) / 60)


def joined(results: Sequence[Mapping]) -> dict:
    """Result files of `mtdiff evaluate` for one experiment and data as one: all variants, all runs."""
    first = results[0]
    for other in results:
        if different := [key for key in ("experiment", "data", "n") if other[key] != first[key]]:
            raise ValueError(f"results differ in {different}: {[(r['experiment'], r['data'], r['n']) for r in results]}")
    variants = {name: figures for result in results for name, figures in result["variants"].items()}
    return {**first, "variants": variants, "runs": [run for result in results for run in result["runs"]]}


def bundle(path: Path, folders: Sequence[Path]) -> None:
    """Pack trained models, in half precision, and their histories into one zip file, each under its folder's name."""
    with tempfile.TemporaryDirectory() as scratch:
        half = Path(scratch)
        for folder in folders:
            mt.load(folder).save(half / folder.name, half=True)
            if (folder / HISTORY).is_file():
                (half / folder.name / HISTORY).write_bytes((folder / HISTORY).read_bytes())
        with zipfile.ZipFile(half / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(half.glob("*/*")):
                archive.write(file, file.relative_to(half))
        write_atomic(path, (half / "all.zip").read_bytes())


@contextlib.contextmanager
def shared_card(device: str, folder: Path, report: list[str]) -> Iterator[dict[str, str]]:
    """Variables by which processes compute on a card at the same time; none where MPS is not there or does not start."""
    control = shutil.which("nvidia-cuda-mps-control") if device.startswith("cuda") else None
    names = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps")}
    if control:
        (folder / "mps").mkdir()
        started = subprocess.run(
            [control, "-d"], env={**os.environ, **names}, capture_output=True, text=True, start_new_session=True
        )
        control = None if started.returncode else control
    report.append("processes share the card by MPS" if control else "no MPS: processes take turns on the card")
    try:
        yield names if control else {}
    finally:
        if control:
            subprocess.run([control], input="quit\n", env={**os.environ, **names}, text=True, check=False)


def train(experiment: str, data: str, variant: str, seed: int, words: Sequence, minutes: float, device: str) -> Job:
    """A training by the clock; its name is its folder."""
    out = f"runs/{experiment}/{data}/{variant}-{seed}"
    named = ["-m", "mtdiff", "train", experiment, "--data", data, "--variant", variant, "--seed", seed, "--out", out]
    return Job(out, [*named, *words, "--device", device, "--minutes", f"{minutes:.2f}"])


def questions(options, work: Path, environment: Mapping[str, str], clock: Clock, report: list[str]) -> None:
    """Part 1: speed, then the questions at 16x16."""
    size, seeds = (TINY, SEEDS[:2]) if options.tiny else (FULL, SEEDS)
    if chosen("speed", options.only):
        words = [Path(__file__).with_name("throughput.py"), *size["speed"], "--device", options.device]
        jobs = []
        for network in ("small",) if options.tiny else NETWORKS:
            file = (options.out / f"speed-{network}.json").resolve()
            jobs.append(Job(f"speed-{network}", [*words, "--networks", network, "--out", file]))
        work_through(jobs, work, environment, Clock(SPEED * clock.left), 1, report)
    asked = {name: (8 if options.tiny else n, [v for v in variants if chosen(f"{name}/{v}", options.only)])
             for name, (n, variants) in QUESTIONS.items()}  # fmt: skip
    turns = -(-len(seeds) * sum(len(variants) for _, variants in asked.values()) // options.most)
    if not turns:
        return
    minutes = minutes_each(clock.left - END, turns, JUDGE)
    report.append(f"every model of the questions is trained for {minutes:.2f} minutes")
    trainings, judgements = [], []
    for name, (n, variants) in asked.items():
        for variant in variants:
            each = [train(name, DATA, variant, seed, size["question"], minutes, options.device) for seed in seeds]
            words = ["-m", "mtdiff", "evaluate", name, "--data", DATA, "--n", n, "--device", options.device]
            result = f"{name}-{DATA}-{variant}.json"
            judgements.append(Job(result, [*words, "--out", result], tuple(job.name for job in each)))
            trainings += each
    rest = Clock(clock.left - END)
    with shared_card(options.device, work, report) as shared:
        work_through([*trainings, *judgements], work, {**environment, **shared}, rest, options.most, report)
    for name, (_, variants) in asked.items():
        found = [read_json(path, "is no result") for v in variants if (path := work / f"{name}-{DATA}-{v}.json").is_file()]
        if found:
            write_atomic(options.out / f"{name}.json", (to_json(joined(found), indent=1) + "\n").encode())
        if models := trained(work / "runs" / name / DATA):
            bundle(options.out / f"{name}-models.zip", models)


def photographs(options, work: Path, environment: Mapping[str, str], clock: Clock, report: list[str]) -> None:
    """Part 2: models of photographs, one after the other."""
    size, variants = TINY if options.tiny else FULL, [v for v in PHOTOGRAPHS if chosen(v, options.only)]
    minutes = minutes_each(clock.left - END, len(variants))
    for k, variant in enumerate(variants):
        minutes = min(minutes, minutes_each(clock.left - END, len(variants) - k))  # all alike, unless one took too long
        job = train("imagenet", options.data, variant, 0, size["photographs"], minutes, options.device)
        if work_through([job], work, environment, Clock(clock.left - END), 1, report):
            bundle(options.out / f"{variant}.zip", [work / job.name])


def trained(folder: Path) -> list[Path]:
    """Runs in a folder that came to their end."""
    return sorted(path.parent for path in folder.glob(f"*/{CARD}"))


def chosen(name: str, only: Collection[str]) -> bool:
    """Whether something is to be done: all is, unless some things are named."""
    return not only or name in only


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2), default=1)
    parser.add_argument("--minutes", type=float, default=9.0, help="all of it, from start to end")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of what comes back: at most 8 files")
    known = ["speed", *(f"{name}/{v}" for name, (_, variants) in QUESTIONS.items() for v in variants), *PHOTOGRAPHS]
    parser.add_argument("--only", nargs="+", choices=known, default=[], metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--most", type=int, default=MOST, help="processes side by side")
    parser.add_argument("--data", default="imagenette64", help="the packed set of part 2")
    parser.add_argument("--tiny", action="store_true", help="a trial on a CPU")
    options = parser.parse_args()
    clock, report = Clock(60 * options.minutes), [f"part {options.part} on {options.device}, torch {torch.__version__}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MTDIFF_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"--device {options.device} cannot be used: torch {torch.__version__} finds no GPU")
    if options.part == 2:
        try:
            environment[FOLDER] = str(packed_folder(options.data).resolve().parent)
        except (FileNotFoundError, KeyError) as error:
            sys.exit(f"part 2 needs packed photographs: {error.args[0]}")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mtdiff-gpu-") as work:
        (photographs if options.part == 2 else questions)(options, Path(work), environment, clock, report)
    report.append(f"{60 * options.minutes - clock.left:.0f} of {60 * options.minutes:.0f} s")
    write_atomic(options.out / "report.txt", ("\n".join(report) + "\n").encode())
    files = sorted(options.out.iterdir())
    print(report[-1], *(f"{path}  {path.stat().st_size / 2**20:.2f} MiB" for path in files), sep="\n")


if __name__ == "__main__":
    main()
