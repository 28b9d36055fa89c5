"""mtdiff course: hand the notebooks out, and grade what returns."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from mtdiff.files import to_json, write_atomic


@dataclass
class Students:
    """Write the notebooks for students: stubs and checks, without solutions and outputs."""

    # A new folder: notebooks/, and the result files that they read in data/.
    out: Annotated[Path, tyro.conf.Positional]
    only: tuple[str, ...] = ()  # Numbers or names of notebooks, such as 00 05; default: all.

    def run(self) -> None:
        """Write them and say where."""
        from mtdiff import course

        written = course.hand_out(self.out, self.only, solutions=isinstance(self, Solutions))
        print(f"{len(written)} notebooks are in {written[0].parent}")


@dataclass
class Solutions(Students):
    """Write the notebooks for teachers: executed, with solutions in view."""


@dataclass
class Grade:
    """Run returned notebooks, each in a process of its own, and say which exercises the course's checks pass.

    A process is no sandbox: what students wrote runs with your rights, so use an account or a container that may be lost.
    """

    LIMITS: ClassVar = {"minutes": (0.01, 10**4)}
    FILES: ClassVar = ("out",)

    # Notebooks, in subfolders named after students or in files named after both: anna/05_x.ipynb, 05_x_anna.ipynb.
    folder: Annotated[Path, tyro.conf.Positional]
    minutes: float = 10.0  # Time for each notebook, as a whole.
    out: Path | None = None  # Also write the table: a .csv or a .json file.

    def run(self) -> None:
        """Grade, print a line for each exercise, and write the table."""
        from mtdiff import course

        kind = self.out.suffix if self.out else ".csv"
        if kind not in (".csv", ".json"):
            raise ValueError(f"--out {self.out} must end in .csv or .json")
        rows = []
        for row in course.grade(self.folder, self.minutes):
            rows.append(vars(row))
            word = "passed" if row.passed else "open"
            print(f"{row.who:20} {row.notebook:32} {row.exercise} {word:6}  {row.message}", flush=True)
        print(f"{sum(row['passed'] for row in rows)} of {len(rows)} exercises passed")
        if self.out:
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, rows[0])
            table.writeheader()
            table.writerows(rows)
            write_atomic(self.out, (to_json(rows, indent=1) + "\n" if kind == ".json" else text.getvalue()).encode())


@dataclass
class Quiz:
    """Ask the questions of the course one by one, say why, and count."""

    only: tuple[str, ...] = ()  # Numbers of notebooks, such as 00 05; default: all.

    def run(self) -> None:
        """Ask until all are answered, or the input ends."""
        from mtdiff import course

        questions, right = course.quiz(self.only), []
        for k, one in enumerate(questions, 1):
            print(f"\n{k} of {len(questions)} (notebook {one.notebook}): {one.text}")
            print(*(f"  {letter}  {text}" for letter, text in one.options.items()), sep="\n")
            try:
                while (answer := input("> ").strip().lower()) not in one.options:
                    print(f"one of {', '.join(one.options)}")
            except EOFError:
                break
            right.append(answer == one.right)
            print(f"{'Right.' if right[-1] else f'No: {one.right}.'} {one.why}")
        print(f"\n{sum(right)} of {len(right)} answers are right")


@dataclass
class Board:
    """Rank the models of a challenge: who says most about digits and their labels after ten minutes on one thread?

    Ranked by the bound on log p(image, label) of held-out digits, in nats; higher is better.
    """

    LIMITS: ClassVar = {"minutes": (0.01, 10**4)}

    # JSON files, named after their authors: mtdiff evaluate image-label --data digits --models MODEL --out anna.json
    folder: Annotated[Path, tyro.conf.Positional]
    minutes: float = 10.0  # Training time on one thread that is allowed.

    def run(self) -> None:
        """Print a line for each model, best first."""
        from mtdiff.challenge import board

        for place, entry in enumerate(board(self.folder, self.minutes), 1):
            scores = f"{entry.nats:9.2f} ± {entry.stderr:.2f} nats  agree {entry.agreement:.3f}  {entry.seconds:4.0f} s"
            print(f"{'-' if entry.barred else place:>3}  {entry.who:24} {entry.barred or scores}")


@dataclass
class Course:
    """Hand the course out, for students or for teachers, grade what returns, or be asked about it."""

    action: tyro.conf.OmitSubcommandPrefixes[Students | Solutions | Grade | Quiz | Board]
