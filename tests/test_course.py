"""Handing the course out, and grading what returns."""

import ast
import builtins
import csv
import io
import json
import os
import re
import signal
import sys
import threading
import time

import nbformat
import pytest

from mtdiff import cli, course
from mtdiff.challenge import board
from mtdiff.widgets import Verdict

every_page = pytest.mark.parametrize("page", course.pages(), ids=lambda page: page.stem)


def code(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


CHECK = f"""
from IPython.display import HTML
def check_1(function):
    shown = {Verdict(True, "WORDS")._repr_html_()!r} if function(3) == 9 else {Verdict(False, "WORDS")._repr_html_()!r}
    return HTML(shown.replace("WORDS", "yours is " + str(function(3))))
check_1(square)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A checkout whose course is one short notebook, with a word of data."""
    cells = [
        nbformat.v4.new_markdown_cell("# One"),
        code("base = len(open('../data/results/word.txt').read())"),
        nbformat.v4.new_markdown_cell("**Exercise 1 (warm-up, easy, 5 minutes). Squares.** Square."),
        code("def square(x):\n    ...", "exercise"),
        code(CHECK, "check"),
        code("def square_solution(x):\n    return x**2", "solution"),
        nbformat.v4.new_markdown_cell("We see how it is done.\n\n**Exercise 2.** None."),
        code("square_solution(4)", "solution"),
        nbformat.v4.new_markdown_cell("Sixteen."),
        code("16"),
        nbformat.v4.new_markdown_cell("Indeed.\n\n## The end"),
    ]
    for cell in cells:
        if "solution" in course.tags(cell):
            course.fold(cell)
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 1, [nbformat.v4.new_output("stream", text="16")]
    root = tmp_path / "checkout"
    (root / "notebooks").mkdir(parents=True)
    (root / "data" / "results").mkdir(parents=True)
    (root / "data" / "results" / "word.txt").write_text("word")
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "00_quickstart.ipynb")
    for name in course.READING:
        (root / "notebooks" / name).write_text("text")
    monkeypatch.setattr(course, "home", lambda: root)
    return root


def read(folder):
    return nbformat.read(folder / "notebooks" / "00_quickstart.ipynb", 4)


# ---- handing out ----


def test_students_get_stubs_and_checks_without_solutions_their_discussion_and_outputs(toy, tmp_path):
    (page,) = course.hand_out(tmp_path / "out")
    notebook = read(tmp_path / "out")
    assert [cell.source.split("\n")[0] for cell in notebook.cells if cell.cell_type == "markdown"] == [
        "# One", "**Exercise 1 (warm-up, easy, 5 minutes). Squares.** Square.", "**Exercise 2.** None.", "## The end",
    ]  # fmt: skip
    assert [course.tags(cell) for cell in notebook.cells if cell.cell_type == "code"] == [[], ["exercise"], ["check"]]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert notebook.metadata["mtdiff"] == page.stem
    assert (tmp_path / "out" / "data" / "results" / "word.txt").read_text() == "word"
    assert {file.name for file in (tmp_path / "out" / "notebooks").glob("*.md")} == {*course.READING}


def test_teachers_get_everything_with_solutions_in_view(toy, tmp_path):
    course.hand_out(tmp_path / "out", solutions=True)
    notebook, ours = read(tmp_path / "out"), read(toy)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in ours.cells]
    assert [course.tags(cell) for cell in notebook.cells].count(["solution"]) == 2
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert not [cell for cell in notebook.cells if set(course.FOLDED) & set(cell.metadata)]


def test_nobodys_work_is_written_over(toy, tmp_path):
    course.hand_out(tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty: name a new folder"):
        course.hand_out(tmp_path / "out")


@pytest.mark.parametrize("name", ["99", "", "one"])
def test_a_notebook_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=rf"no notebook '{name}'; there are \['00_quickstart', '01_"):
        course.pages([name])


def test_notebooks_are_chosen_by_number_or_name():
    assert [page.stem[:2] for page in course.pages(["05", "00_quick"])] == ["00", "05"]


def test_without_a_checkout_one_line_says_where_the_notebooks_are(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "__file__", str(tmp_path / "site-packages" / "mtdiff" / "course.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="do not come with the package: run this in a checkout"):
        course.home()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00_quickstart.ipynb").touch()
    assert course.home() == tmp_path


@every_page
def test_a_students_notebook_is_whole(page):
    """No solution is left, each exercise has its check, and no cell uses a name that went with a solution."""
    original = nbformat.read(page, 4)
    answers = [c.source for c in original.cells if "solution" in course.tags(c)]
    notebook = course.student_version(nbformat.read(page, 4))
    nbformat.validate(notebook)
    sources = [cell.source for cell in notebook.cells]
    assert not [source for source in sources if "_solution" in source or source in answers]
    assert not [cell for cell in notebook.cells if {"solution", course.HIDDEN} & {*course.tags(cell)} or cell.get("outputs")]
    kinds = [tag for cell in notebook.cells for tag in course.tags(cell) if tag in ("exercise", "check")]
    assert kinds == ["exercise", "check"] * len(answers)
    assert sorted(course.checks(notebook)) == list(range(1, len(answers) + 1))
    headings = re.findall(r"^\*\*Exercise (\d)|^(## What we learned)", "\n".join(sources), re.M)
    assert [number for number, _ in headings] == [*map(str, range(1, len(answers) + 1)), ""]
    nodes = [n for cell in notebook.cells if cell.cell_type == "code" for n in ast.walk(ast.parse(cell.source))]
    names = [n for n in nodes if isinstance(n, ast.Name)]
    known = {n.id for n in names if not isinstance(n.ctx, ast.Load)} | set(vars(builtins))
    known |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
    known |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    known |= {(n.asname or n.name).split(".")[0] for n in nodes if isinstance(n, ast.alias)}
    assert {n.id for n in names} - known == set()


# ---- grading ----


def returned(folder, file, answer=None, **changes):
    """The students' notebook of the toy course, with an answer in its stub or other changed cells, handed back."""
    if not (folder / "handed").exists():
        course.hand_out(folder / "handed")
    notebook = read(folder / "handed")
    for cell in notebook.cells:
        for tag, source in {**({"exercise": answer} if answer else {}), **changes}.items():
            if tag in course.tags(cell):
                cell.source = source
    (folder / "returned" / file).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "returned" / file)


def test_every_exercise_is_graded_by_our_check(toy, tmp_path):
    returned(tmp_path, "anna/work.ipynb", "def square(x):\n    return x * x")
    returned(tmp_path, "ben/work.ipynb", "def square(x):\n    return base * x")  # reads the data
    returned(tmp_path, "cleo/work.ipynb", "def square(x):\n    return 0", check=CHECK.replace("== 9", "== 0"))
    returned(tmp_path, "dora/work.ipynb", check="print('gone')")
    rows = [*course.grade(tmp_path / "returned", 2)]
    found = [(row.who, row.notebook, row.exercise, row.passed, row.message) for row in rows]
    assert found == [
        ("anna", "00_quickstart", 1, True, "yours is 9"),
        ("ben", "00_quickstart", 1, False, "yours is 12"),
        ("cleo", "00_quickstart", 1, False, "yours is 0"),
        ("dora", "00_quickstart", 1, False, "the cell with its check is missing"),
    ]
    assert all(0 < row.seconds < 120 for row in rows)


def test_whatever_returns_becomes_a_row(toy, tmp_path):
    returned(tmp_path, "a_crash.ipynb", "import os\nprint('x' * 10**6)\nos._exit(1)")
    returned(tmp_path, "b_raises.ipynb", "base = unknown\ndef square(x):\n    return base + '\\x1b[31m\\n'")
    for name, text in {
        "c_broken": '{"a": ',
        "d_other": '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
    }.items():
        (tmp_path / "returned" / f"{name}.ipynb").write_text(text)
    (tmp_path / "returned" / "e_bytes.ipynb").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "returned" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "returned" / ".ipynb_checkpoints" / "f.ipynb").write_text("")
    rows = {row.who: row for row in course.grade(tmp_path / "returned", 2)}
    assert [*rows] == ["a_crash", "b_raises", "c_broken", "d_other", "e_bytes"]
    assert not any(row.passed for row in rows.values())
    assert rows["a_crash"].message == "the process died in code cell 2"
    raised = "NameError: name 'square' is not defined (first, code cell 2 raised NameError: name 'unknown' is not defined)"
    assert rows["b_raises"].message == raised
    assert "cannot be graded: NotJSONError" in rows["c_broken"].message
    assert "which notebook is d_other.ipynb?" in rows["d_other"].message
    assert "cannot be graded: UnicodeDecodeError" in rows["e_bytes"].message
    assert [row.exercise for row in rows.values()] == [1, 1, 0, 0, 0]


def test_an_endless_notebook_is_cut_off(toy, tmp_path):
    returned(tmp_path, "anna.ipynb", "while True:\n    print('x' * 1000)")
    (row,) = course.grade(tmp_path / "returned", 0.1)
    assert row.message.startswith("cut off after 0.1 minutes in code cell ")
    assert not row.passed
    assert row.seconds < 120


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_grading_can_be_stopped(toy, tmp_path, sent):
    ready = tmp_path / "ready"
    returned(tmp_path, "anna.ipynb", f"import time\nopen({str(ready)!r}, 'w').close()\ntime.sleep(600)")
    returned(tmp_path, "ben.ipynb")

    def stop():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), sent)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        next(course.grade(tmp_path / "returned", 2))


def test_a_kernel_that_cannot_be_reached_is_a_row(toy, tmp_path, monkeypatch):
    returned(tmp_path, "anna.ipynb")

    def execute(self, **options):
        raise TimeoutError

    monkeypatch.setattr(course.Runner, "execute", execute)
    (row,) = course.grade(tmp_path / "returned", 1)
    assert (row.exercise, row.passed, row.message) == (1, False, "lost in code cell 0 (TimeoutError )")


def test_an_error_in_a_widget_is_its_cells_and_loses_nothing():
    """nbclient would look for the widget's state, which is not kept, and give the notebook up."""
    code = """import ipywidgets
out = ipywidgets.Output()
@out.capture(clear_output=True)
def redraw():
    print("a line")
    display(1)
    return 1 / 0
redraw()"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (code, "after = 2\nafter")])
    assert course.run(notebook, 2) == ""
    assert course.raised(notebook) == {1: "ZeroDivisionError: division by zero"}
    assert notebook.cells[1].outputs[0].data["text/plain"] == "2"


def test_a_notebook_that_lost_its_mark_is_known_by_its_name(toy, tmp_path):
    returned(tmp_path, "00_quickstart_anna.ipynb", "def square(x):\n    return x * x")
    notebook = nbformat.read(tmp_path / "returned" / "00_quickstart_anna.ipynb", 4)
    notebook.metadata.clear()
    for cell in notebook.cells:
        cell.metadata.clear()
    nbformat.write(notebook, tmp_path / "returned" / "00_quickstart_anna.ipynb")
    (row,) = course.grade(tmp_path / "returned", 2)
    assert (row.who, row.notebook, row.passed) == ("00_quickstart_anna", "00_quickstart", True)


def test_a_folder_without_notebooks_is_named(tmp_path):
    with pytest.raises(ValueError, match="there are no notebooks"):
        next(course.grade(tmp_path / "none", 1))


# ---- on the command line ----


def command(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mtdiff", "course", *map(str, words)])
    cli.main()


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_table_is_written(kind, tmp_path, monkeypatch, capsys):
    rows = [course.Row("ánna", "00_x", 1, True, 'a, "b"', 1.5), course.Row("ben", "00_x", 1, False, "look", 2.0)]
    monkeypatch.setattr(course, "grade", lambda folder, minutes: rows if (folder.name, minutes) == ("f", 3.0) else None)
    command(monkeypatch, "grade", "f", "--minutes", 3, "--out", tmp_path / f"marks.{kind}")
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r'ánna +00_x +1 passed +a, "b"', printed[0])
    assert printed[-1] == "1 of 2 exercises passed"
    with open(tmp_path / f"marks.{kind}", encoding="utf-8", newline="") as file:
        table = [*csv.DictReader(file)] if kind == "csv" else json.load(file)
    assert [row["message"] for row in table] == ['a, "b"', "look"]
    assert [str(row["passed"]) for row in table] == ["True", "False"]


def test_the_versions_are_written(toy, tmp_path, monkeypatch, capsys):
    command(monkeypatch, "students", tmp_path / "a")
    command(monkeypatch, "solutions", tmp_path / "b", "--only", "00")
    assert "1 notebooks are in" in capsys.readouterr().out
    assert "_solution" not in str(read(tmp_path / "a"))
    assert "_solution" in str(read(tmp_path / "b"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grade", "none"], "there are no notebooks (*.ipynb) in none"),
        (["grade", ".", "--out", "marks.txt"], "--out marks.txt must end in .csv or .json"),
        (["grade", ".", "--minutes", "nan"], "--minutes must be in"),
        (["students", "out", "--only", "77"], "no notebook '77'"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        command(monkeypatch, *words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# ---- one notebook for real: 02, seven seconds of one core each time ----


def test_a_students_notebook_runs_and_only_checks_are_open(tmp_path):
    course.hand_out(tmp_path, ["02"])
    notebook = nbformat.read(next((tmp_path / "notebooks").glob("02*.ipynb")), 4)
    assert course.run(notebook, 10) == ""
    assert course.raised(notebook) == {}
    verdicts = [course.verdict(cell) for cell in course.checks(notebook).values()]
    assert verdicts == [(False, "the function returns nothing yet")] * 3


def test_a_solved_notebook_passes(tmp_path):
    course.hand_out(tmp_path, ["02"])
    (page,) = course.pages(["02"])
    answers = [c.source.split("\nsolved = ")[0] for c in nbformat.read(page, 4).cells if "solution" in course.tags(c)]
    notebook = nbformat.read(tmp_path / "notebooks" / page.name, 4)
    stubs = [cell for cell in notebook.cells if "exercise" in course.tags(cell)]
    for stub, answer in zip(stubs, answers, strict=True):
        stub.source = answer.replace("_solution", "")
    nbformat.write(notebook, tmp_path / "notebooks" / page.name)
    rows = [*course.grade(tmp_path, 10)]
    assert [(row.exercise, row.passed) for row in rows] == [(1, True), (2, True), (3, True)], rows


# ---- the quiz ----


def test_every_question_has_options_and_a_reason_that_leads_to_its_notebook():
    questions, page = course.quiz(), (course.home() / "notebooks" / "quiz.md").read_text()
    assert len(questions) == 33
    assert {one.notebook for one in questions} == {path.stem[:2] for path in course.pages()}
    for one in questions:
        assert list(one.options) == list("abcd"[: len(one.options)])
        assert len(one.options) >= 3
        assert one.right in one.options
        assert re.search(rf"\(\[{one.notebook} §\d+\]\)$", one.why)
    assert re.findall(r"^## (\d+) · ", page, re.M) == [str(k) for k in range(1, 34)]


def test_a_quiz_counts_right_answers_and_asks_again_for_what_is_no_letter(monkeypatch, capsys):
    questions = course.quiz(["01"])
    wrong = next(letter for letter in questions[1].options if letter != questions[1].right)
    answers = ["x", f" {questions[0].right.upper()} ", wrong]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(answers) + "\n"))
    command(monkeypatch, "quiz", "--only", "01")
    out = capsys.readouterr().out
    assert f"1 of {len(questions)} (notebook 01)" in out
    assert "one of a, b, c" in out
    assert f"Right. {questions[0].why}" in out
    assert f"No: {questions[1].right}. {questions[1].why}" in out
    assert out.endswith("1 of 2 answers are right\n")  # the input ended


def test_a_quiz_on_no_notebook_says_which_there_are():
    with pytest.raises(ValueError, match=r"no question on notebook '99'; there are some on .*'00'"):
        course.quiz(["99"])


# ---- the challenge ----


def entry(folder, name, change=lambda run: None, source="image-label-digits-fade-in"):
    result = json.loads((course.home() / "data" / "results" / f"{source}.json").read_text())
    result["runs"] = result["runs"][:1]
    change(result["runs"][0])
    (folder / f"{name}.json").write_text(json.dumps(result))


def test_models_are_ranked_by_their_bound_and_what_broke_a_rule_is_last(tmp_path, monkeypatch, capsys):
    entry(tmp_path, "anna")
    entry(tmp_path, "ben", lambda run: run["metrics"]["bound"].update(joint=-90.0))
    entry(tmp_path, "long", lambda run: run["card"]["training"].update(wall_seconds=601.0))
    entry(tmp_path, "many", lambda run: run["card"]["provenance"].update(threads=2))
    entry(tmp_path, "tuned", lambda run: run["card"].update({"based on": {}}))
    entry(tmp_path, "scenes", source="image-label-shapes16-fade-in")
    entry(tmp_path, "alone", source="image-label-digits-image-only")
    (tmp_path / "notes.json").write_text("[]")
    found = {one.who: one for one in board(tmp_path)}
    assert list(found)[:2] == ["ben", "anna"]
    assert not found["ben"].barred + found["anna"].barred
    assert found["anna"].nats == pytest.approx(-102.362)
    barred = {who: one.barred for who, one in found.items()}
    assert barred["long"] == "601 s on 1 thread(s), 600 s are allowed on one"
    assert "on 2 thread" in barred["many"]
    assert barred["tuned"] == "began with a trained model"
    assert "other data" in barred["scenes"] or "no result" in barred["scenes"]
    assert "no result of mtdiff evaluate image-label" in barred["notes"]
    assert barred["alone"]
    command(monkeypatch, "board", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"  1  ben +-90\.00 ± 0\.79 nats  agree 0\.990   368 s", lines[0])
    assert all(line.startswith("  -  ") for line in lines[2:])


def test_a_challenge_without_entries_is_named(tmp_path):
    with pytest.raises(ValueError, match="no JSON files in"):
        board(tmp_path)
