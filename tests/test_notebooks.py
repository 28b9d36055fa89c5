"""The pairs of the course, and the controls in them."""

import ast
import functools
import html
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import browser
import jupytext
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from helpers import image_label_model, randomise
from nbconvert import HTMLExporter

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.comparison import Difference
from mtdiff.course import HIDDEN
from mtdiff.course import tags as tags_of
from mtdiff.datasets import MIXTURE, Dataset, masks, shapes
from mtdiff.experiments import any_to_any, image_representation, image_transition, masked_image
from mtdiff.metrics import psnr

spec = importlib.util.spec_from_file_location("course_notebooks", Path(__file__).parent / "notebooks.py")
course = importlib.util.module_from_spec(spec)
spec.loader.exec_module(course)

MOST_WORDS = 3000
"""A notebook that is longer is split or cut."""
TAGS = {"setup", "exercise", "solution", "check", "slide", "slow", "nbval-check-output", "nbval-ignore-output"}
every_notebook = pytest.mark.parametrize("source", course.sources(), ids=lambda source: source.stem)


@pytest.fixture(autouse=True)
def close_figures():
    """Pictures that a test drew and nobody showed."""
    yield
    plt.close("all")


def test_there_are_notebooks():
    assert course.sources()[0].stem == "00_quickstart"


@every_notebook
def test_both_halves_of_a_pair_agree(source):
    assert course.cells(jupytext.read(source)) == course.cells(nbformat.read(source.with_suffix(".ipynb"), 4))


def test_the_explorer_is_a_pair_too_and_comes_without_pictures():
    source = course.FOLDER / "explorer.py"
    page = nbformat.read(source.with_suffix(".ipynb"), 4)
    assert course.cells(jupytext.read(source)) == course.cells(page)
    assert not any(cell.get("outputs") for cell in page.cells)


def test_the_explorer_has_boards():
    boards = re.findall(r"^widgets\.(\w+)\(", (course.FOLDER / "explorer.py").read_text(), re.M)
    assert len(boards) == 6
    assert all(isinstance(getattr(widgets, name), widgets.Board) for name in boards)


@pytest.mark.parametrize("source", [*course.sources(), course.FOLDER / "explorer.py"], ids=lambda source: source.stem)
def test_mtdiff_is_imported_before_what_only_it_can_say_is_missing(source):
    first = next(cell.source for cell in course.code(jupytext.read(source)))
    lines = [node for node in ast.parse(first).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [getattr(node, "module", None) or node.names[0].name for node in lines]
    others = [name.split(".")[0] for name in names if name.split(".")[0] not in sys.stdlib_module_names]
    assert others[:2] == ["mtdiff", "mtdiff"]
    assert "mtdiff" not in others[others.count("mtdiff") :]


@pytest.mark.parametrize(
    ("library", "said"), [("matplotlib", "mtdiff.plots needs matplotlib"), ("anywidget", "mtdiff.widgets needs anywidget")]
)
def test_a_notebook_stops_with_one_line_where_a_library_is_missing(library, said):
    first = course.code(jupytext.read(course.sources()[0]))[0].source
    run = f"import sys; sys.modules[{library!r}] = None; from IPython.core.interactiveshell import InteractiveShell as Shell"
    code = f"{run}; Shell.instance(colors='nocolor', history_manager_class=None).run_cell({first!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{said}: pip install 'mtdiff[notebooks]'"


@every_notebook
def test_the_page_is_what_its_source_and_its_tags_say(source):
    """Folds, slides and stamp as well; `make notebooks` carries them over."""
    assert nbformat.read(source.with_suffix(".ipynb"), 4) == course.refreshed(source)


@every_notebook
def test_solutions_and_nothing_else_are_folded_away(source):
    for cell in nbformat.read(source.with_suffix(".ipynb"), 4).cells:
        hidden = cell.metadata.get("jupyter", {})
        folds = (
            hidden.get("source_hidden"),
            hidden.get("outputs_hidden"),
            cell.metadata.get("cellView"),
            HIDDEN in tags_of(cell),
        )
        assert folds == ((True, True, "form", True) if "solution" in tags_of(cell) else (None, None, None, False))


@every_notebook
def test_the_page_was_executed_from_this_source_and_these_checkpoints(source):
    assert not course.out_of_date(source), f"run: make notebooks ({source.stem} changed since its page was executed)"


@every_notebook
def test_the_page_reads_on_a_plain_viewer(source):
    page = source.with_suffix(".ipynb")
    notebook = nbformat.read(page, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert page.stat().st_size < 500_000
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "widgets" not in notebook.metadata
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", output
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
            if "image/png" in output.get("data", {}):
                assert output.metadata["image/png"]["alt"], "every figure says in words what it shows"


class Opened(HTMLParser):
    """What a browser does with a page: what it fetches, and what text it shows outside of code."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.links, self.text, self.inside = [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside += [tag] if tag in ("pre", "code", "script", "style", "title") else []
        for name, value in attrs:
            address = name in ("src", "srcset", "poster", "data") or name.endswith("href")
            if address and tag == "a":
                self.links.append(value)
            elif address and not value.startswith(("data:", "#")):
                self.fetched.append(value)
            elif name == "style":
                self.read_style(value)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data
        elif self.inside[-1] == "style":
            self.read_style(data)
        elif self.inside[-1] == "script":
            self.fetched += re.findall(r"\bhttps?://[^\s'\"]+", data)

    def read_style(self, style):
        found = re.findall(r"""(?:url\(|@import)\s*['"]?([^'")\s;]+)""", style)
        self.fetched += [address for address in found if not address.startswith("data:")]


@every_notebook
def test_the_web_page_shows_every_formula_describes_every_figure_and_fetches_nothing(source):
    page = course.web_page(nbformat.read(source.with_suffix(".ipynb"), 4))
    opened = Opened(page)
    assert "No description has been provided" not in page
    assert opened.fetched == []
    assert not re.search(r".{0,30}(?:\$|\\[a-zA-Z]).{0,30}", opened.text)  # what is left of a formula
    assert page.count('role="img"') > 5
    assert page.count("<details><summary>Solution</summary>") == page.count("</details>") >= 2
    near = [link for link in opened.links if not re.match(r"https?:|#", link)]
    assert all(Path(os.path.normpath(course.PAGES / link)).exists() for link in near), near


@every_notebook
def test_slides_are_the_tagged_cells_and_the_figures_and_fetch_nothing(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), 4)
    slides = course.deck(notebook)
    opened = Opened(slides)
    titles = [re.search(r"^#+ (.*)", cell.source, re.M) for cell in notebook.cells if "slide" in tags_of(cell)]
    shown = [c for c in notebook.cells if course.figures(c) and not {"exercise", "check", "solution"} & set(tags_of(c))]
    assert slides.count("<section>") == len(titles) + len(shown) >= 10
    assert all(re.split(r"[*$`]", title[1])[0].strip() in opened.text for title in titles if title)
    assert slides.count("<img alt=") == sum(len(course.figures(cell)) for cell in shown)
    assert 'alt=""' not in slides
    assert [address for address in opened.fetched if address.startswith("http")] == []
    assert not re.search(r".{0,30}(?:\$|\\[a-zA-Z]).{0,30}", opened.text)
    near = [link for link in opened.links if not re.match(r"https?:|#", link)]
    assert all(Path(os.path.normpath(course.PAGES / "slides" / link)).exists() for link in near), near


def test_the_slides_that_a_plan_names_have_its_sections():
    rows = re.findall(r"^\| \d+-\d+ \| (.+) \| (\d\d): ([\d, -]+) \|$", course.GUIDE.read_text(), re.M)
    assert len(rows) == 5
    for what, number, numbers in rows:
        (page,) = course.FOLDER.glob(f"{number}_*.ipynb")
        slides = course.deck(nbformat.read(page, 4)).split("<section>")
        ends = [[int(k) for k in part.split("-")] for part in numbers.split(", ")]
        shown = "".join("".join(slides[first : last + 1]) for first, last in ((a[0], a[-1]) for a in ends))
        assert all(1 <= a[0] <= a[-1] < len(slides) for a in ends), (what, numbers, len(slides))
        assert all(f">{section} · " in shown for section in re.findall(r"§(\d)", what)), (what, numbers)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium or Chrome")
def test_four_figures_of_one_cell_stand_side_by_side_on_a_slide(tmp_path):
    page = next(course.FOLDER.glob("05_*.ipynb"))
    (tmp_path / "slides.html").write_text(course.deck(nbformat.read(page, 4)))
    with browser.opened((tmp_path / "slides.html").as_uri()) as tab:
        tab.until("document.body?.classList.contains('turned')")
        fits = tab.evaluate("[...document.querySelectorAll('section')].map((s) => s.style.getPropertyValue('--fit') * 1)")
    assert len(fits) > 20
    assert min(fits) > 0.7, fits


def test_a_figure_of_a_solution_is_no_slide():
    picture = nbformat.v4.new_output("display_data", {"image/png": "eA=="}, metadata={"image/png": {"alt": "a < b"}})
    text = nbformat.v4.new_markdown_cell("# A *title*\n\ntext", metadata={"tags": ["slide"]})
    cells = [text, *(nbformat.v4.new_code_cell("1", outputs=[picture], metadata={"tags": t}) for t in ([], ["solution"]))]
    notebook = course.finished(
        nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell("more")]), course.sources()[0]
    )
    assert [cell.metadata.slideshow.slide_type for cell in notebook.cells] == ["slide", "subslide", "skip", "skip"]
    slides = course.deck(notebook)
    assert slides.count("<section>") == 2
    assert '<img alt="a &lt; b" src="data:image/png;base64,eA==">' in slides
    assert "<title>A *title*</title>" in slides
    assert "more" not in slides


def test_a_page_that_fetches_or_leaves_a_formula_would_be_noticed():
    cell = nbformat.v4.new_markdown_cell("# One $x$\n\nTwo\n+ three $y$ [here](theory.md)")
    plain = Opened(HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))[0])
    assert len(plain.fetched) >= 3
    assert "$x$" in plain.text
    ours = Opened(course.web_page(nbformat.v4.new_notebook(cells=[cell])))
    assert ours.fetched == []
    assert "$" not in ours.text
    assert ours.links[-1] == "../notebooks/theory.md"
    broken = nbformat.v4.new_markdown_cell("A formula $a\n+ b$ that Markdown takes for a list")
    assert "$" in Opened(course.web_page(nbformat.v4.new_notebook(cells=[broken]))).text
    for style in ("@import 'a.css'", "p {background: url(https://a.b/c.png)}"):
        assert Opened(f"<style>{style}</style>").fetched


@pytest.mark.parametrize("latex", [r"\Big\| x \Big\|", r"\mathbb E x", "\\mathcal N(0,\\\n I)", r"\operatorname{Var} z"])
def test_a_formula_is_a_picture_with_its_source(latex):
    picture = course.formula(latex)
    assert html.unescape(re.search("<title>(.*)</title>", picture)[1]) == " ".join(latex.split())
    assert picture.count("<path") >= 2
    assert "<text" not in picture


def test_a_formula_that_is_not_understood_is_named():
    with pytest.raises(ValueError, match=r"not understood: 'x \+ \\\\nonsense'"):
        course.formula(r"x + \nonsense")


@every_notebook
def test_cells_are_short_tagged_and_without_magics(source):
    for kind, text, tags in course.cells(jupytext.read(source)):
        assert set(tags) <= TAGS, tags
        if kind == "code":
            assert len([line for line in text.splitlines() if line.strip()]) <= 25, text
            assert not re.match(r"\s*[%!]", text), text


def words(markdown):
    """How many words a text has: a word has a letter or a digit, and a formula is one word."""
    return len(re.findall(r"\S*[^\W_]\S*", re.sub(r"\$\$.+?\$\$|\$[^$]+\$", "x", markdown, flags=re.S)))


@every_notebook
def test_a_notebook_is_read_in_one_sitting(source):
    count = sum(words(text) for kind, text, _ in course.cells(jupytext.read(source)) if kind == "markdown")
    assert count <= MOST_WORDS, f"{source.stem} has {count} words"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("two  words", 2),
        ("# One", 1),
        ("- the $v$-loss is $1 + 2$.", 4),
        ("so\n$$ a\n = b $$\nand $$ c $$", 4),
        ("| a | 3 |\n|---|---|", 2),
    ],
)
def test_a_formula_is_one_word_and_a_sign_of_markdown_is_none(text, count):
    assert words(text) == count


@every_notebook
def test_every_exercise_has_a_check_and_a_solution(source):
    tags = [tag for _, _, tags in course.cells(jupytext.read(source)) for tag in tags]
    assert 2 <= tags.count("exercise") <= 4
    assert tags.count("exercise") == tags.count("check") == tags.count("solution")


def calls_a_check(node):
    return any(isinstance(n, ast.Call) and getattr(n.func, "id", "").startswith("check_") for n in ast.walk(node))


@every_notebook
def test_a_wrong_answer_is_tried_beside_every_solution(source):
    """`assert not check_2(wrong)`, or the same of a name that stands for such a verdict; executed with the notebook."""
    solutions = [ast.parse(text) for _, text, tags in course.cells(jupytext.read(source)) if "solution" in tags]
    for nodes in map(list, map(ast.walk, solutions)):
        verdicts = [n.targets[0] for n in nodes if isinstance(n, ast.Assign) and calls_a_check(n.value)]
        names = {name.id for target in verdicts for name in ast.walk(target) if isinstance(name, ast.Name)}
        asserted = [n.test for n in nodes if isinstance(n, ast.Assert)]
        refused = [t.operand for t in asserted if isinstance(t, ast.UnaryOp) and isinstance(t.op, ast.Not)]
        assert [t for t in asserted if isinstance(t, ast.Name) and t.id in names], "no right answer is asserted"
        assert [t for t in refused if calls_a_check(t) or getattr(t, "id", None) in names], "no wrong answer is tried"


def test_changed_code_is_noticed_and_changed_text_is_carried_over(tmp_path):
    source = course.sources()[0]
    copy = tmp_path / source.name
    copy.write_text(source.read_text().rstrip() + "\n# more text")
    copy.with_suffix(".ipynb").write_text(source.with_suffix(".ipynb").read_text())
    assert not course.out_of_date(copy)
    page, old = course.refreshed(copy), nbformat.read(source.with_suffix(".ipynb"), 4)
    assert page.cells[-1].source == old.cells[-1].source + "\nmore text"
    assert page.cells[:-1] == old.cells[:-1]
    copy.write_text(source.read_text() + "\n# %%\n1")
    assert course.out_of_date(copy)


@every_notebook
def test_a_notebook_gets_a_first_cell_once_and_nothing_else_changes(source, tmp_path):
    copy = tmp_path / source.name
    copy.write_text(course.reachable(course.reachable(source.read_text(), "other/name"), "someone/course"))
    copy.with_suffix(".ipynb").write_text(source.with_suffix(".ipynb").read_text())
    assert not course.out_of_date(copy)
    page, old = course.refreshed(copy), nbformat.read(source.with_suffix(".ipynb"), 4)
    assert course.cells(page) == course.cells(jupytext.read(copy))
    first, *rest = [cell for cell in page.cells if cell.cell_type == "code"]
    assert (first.source, tags_of(first)) == (course.setup("someone/course").strip(), ["setup"])
    assert first.outputs == []
    assert [cell.execution_count for cell in (first, *rest)] == [*range(1, len(rest) + 2)]
    texts = ([cell.source for cell in half.cells if "setup" not in tags_of(cell)] for half in (page, old))
    assert next(texts) == next(texts)
    shown = ([o.get("data", o.get("text")) for c in cells for o in c.outputs] for cells in (rest, course.code(old)))
    assert next(shown) == next(shown)


def test_the_first_cell_gets_the_course_where_it_is_missing_and_only_there(monkeypatch):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(os, "chdir", lambda folder: ran.append(folder))
    exec(course.setup("someone/course"), {})
    assert ran == []
    monkeypatch.setattr(importlib.util, "find_spec", {"mtdiff": None}.get)
    exec(course.setup("someone/course"), {})
    clone, (python, *install), folder = ran
    assert clone == ["git", "clone", "-q", "https://github.com/someone/course"]
    assert (python, install) == (sys.executable, ["-m", "pip", "install", "-q", "./course[notebooks]"])
    assert folder == "course/notebooks"


# ---- the teacher's guide ----

GUIDE = course.GUIDE.read_text()


@every_notebook
def test_every_exercise_says_how_hard_and_how_long_it_is_as_the_guide_does(source):
    text = "\n".join(source for kind, source, _ in course.cells(jupytext.read(source)) if kind == "markdown")
    said = re.findall(r"^\*\*Exercise (\d) \([\w -]+, (easy|medium|hard), (\d+) minutes\)[.:] .+\*\*", text, re.M)
    stubs = sum("exercise" in tags for _, _, tags in course.cells(jupytext.read(source)))
    checks = {int(number) for number in re.findall(r"^def check_(\d+)\(", source.read_text(), re.M)}
    assert [int(number) for number, _, _ in said] == sorted(checks)
    assert len(said) == len(checks) == stubs
    rows = re.findall(rf"^\| {source.stem[:2]} \| (\d) \| .+ \| (\w+) \| (\d+) \|$", GUIDE, re.M)
    assert rows == said
    assert course.timed(source.read_text(), source.stem[:2]) == source.read_text()


def test_the_guide_names_every_notebook_and_no_other():
    stems = [source.stem for source in course.sources()]
    assert re.findall(r"^\| \[.+\]\((\w+)\.ipynb\) \| \d+ \| .+ \|$", GUIDE, re.M) == stems
    assert re.findall(r"^\*\*(\d\d) .+\.\*\* \*Goal\*.*\*Say\*", GUIDE, re.M) == [stem[:2] for stem in stems]
    names = re.findall(r"\[(\d\d .+)\]\((\w+)\.ipynb\)", GUIDE)
    assert names == re.findall(r"^\| \[(\d\d .+)\]\(notebooks/(\w+)\.ipynb\)", (course.ROOT / "README.md").read_text(), re.M)
    rows = set(re.findall(r"^\| (\d\d) \| \d \|", GUIDE, re.M))
    assert rows == {stem[:2] for stem in stems}


def test_minutes_are_written_into_a_source_once():
    text = "# **Exercise 1 (warm-up). Squares.** Square\n# **Exercise 9 (odd): none.** No"
    once = course.timed(text, "00")
    assert once == "# **Exercise 1 (warm-up, easy, 10 minutes). Squares.** Square\n# **Exercise 9 (odd): none.** No"
    assert course.timed(once, "00") == once
    assert course.timed(once.replace("easy, 10", "hard, 99"), "00") == once
    long = course.timed(f"# **Exercise 1 (warm-up). Squares.** {'word ' * 17}end", "00")
    assert long == f"# **Exercise 1 (warm-up, easy, 10 minutes). Squares.**\n# {'word ' * 17}end"


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ('mt.load("a/b")', "checkpoints/a/b/card.json"),
        ('folder.glob("some-*.json")', "results/some-digits.json"),
        ('f"some-{variant}.json"', "results/some-digits.json"),
    ],
)
def test_a_changed_file_that_a_page_shows_is_noticed(line, file, tmp_path, monkeypatch):
    monkeypatch.setattr(course, "ROOT", tmp_path)
    source, shown = tmp_path / "09_x.py", tmp_path / "data" / file
    source.write_text(line)
    shown.parent.mkdir(parents=True)
    shown.write_text("1")
    before = course.fingerprint(source)
    assert course.fingerprint(source) == before
    shown.write_text("2")
    assert course.fingerprint(source) != before


@pytest.fixture(scope="module")
def model():
    return mt.load("image-label/digits")


def test_the_samplers_callback_draws_the_class_and_repeats(model):
    figure = widgets.draw_class(model, 4, guidance=2.0, steps=3, seed=1, n=3)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["4"] * 3
    assert "guidance 2" in figure.get_suptitle()
    pictures = [axis.images[0].get_array() for axis in figure.axes]
    again = [axis.images[0].get_array() for axis in widgets.draw_class(model, 4, 2.0, 3, 1, 3).axes]
    other = [axis.images[0].get_array() for axis in widgets.draw_class(model, 4, 2.0, 3, 2, 3).axes]
    assert all((a == b).all() for a, b in zip(pictures, again, strict=True))
    assert not all((a == b).all() for a, b in zip(pictures, other, strict=True))


def test_a_verdict_is_its_truth_and_shows_its_message():
    good, bad = widgets.Verdict(True, "a < b"), widgets.Verdict(False, "look again")
    assert good
    assert not bad
    assert "Solved" in good._repr_html_()
    assert "a &lt; b" in good._repr_html_()
    assert "Not yet" in bad._repr_html_()


def test_plots_show_images_of_any_channel_count_and_mark_wrong_labels():
    figure = plots.pair_grid(torch.zeros(3, 5, 4, 4), torch.tensor([0, 1, 0]), ["a", "b"], wrong=torch.tensor([0, 1, 0]) > 0)
    colours = [axis.title.get_color() for axis in figure.axes]
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "a"]
    assert colours[0] == colours[2] != colours[1]


def test_error_bars_are_those_of_the_result_file_and_a_single_seed_has_none():
    axis = plots.plt.figure().add_subplot()
    plots.error_bars(axis, (1, 2), [{"mean": 3.0, "stderr": 0.5}, {"mean": 4.0, "stderr": None}], marker="s", label="a")
    (bars,) = axis.containers
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[2.5, 3.5], [4.0, 4.0]]
    assert bars.lines[0].get_xydata().tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert (bars.lines[0].get_marker(), bars.get_label()) == ("s", "a")
    plots.plt.close()


def test_differences_stand_around_0_and_say_how_many_pairs_they_are_and_which_are_clear():
    axis = plots.plt.figure().add_subplot()
    rows = {"a": Difference(2.0, 0.1, 3), "b": Difference(-1.0, 0.5, 3), "c": Difference(0.5, None, 1)}
    plots.differences(axis, rows, "points")
    found = [[bar.get_segments()[0].tolist() for bar in bars.lines[2]] for bars in axis.containers]
    assert found == [[[[1.9, 0], [2.1, 0]]], [[[-1.5, 1], [-0.5, 1]]], []]
    assert [bars.lines[0].get_mfc() == "white" for bars in axis.containers] == [False, True, True]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "b", "c"]
    assert axis.get_ylim() == (2.5, -0.5)
    assert axis.get_xlabel() == "points\n(n = 1 or 3)"
    assert axis.lines[-1].get_xdata() == [0, 0]


def test_differences_stand_around_0_blue_where_better_and_filled_where_clear():
    up, down, single = Difference(2.0, 0.1, 3), Difference(-3.0, 2.9, 3), Difference(1.0, None, 1)
    figure = plots.difference_panels({"distance": {"a": up, "b": down}, "accuracy": {"b": up, "c": single}}, {"distance"})
    blue, red = plots.COLOURS["image"], plots._CYCLE[3]
    looks = [
        [(*bars.lines[0].get_xydata()[0], bars.lines[0].get_mfc(), bars.lines[0].get_color()) for bars in axis.containers]
        for axis in figure.axes
    ]
    assert looks == [[(2, 0, red, red), (-3, 1, "white", blue)], [(2, 1, blue, blue), (1, 2, "white", blue)]]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    said = [axis.get_xlabel() for axis in figure.axes]
    assert said == ["distance\nlower is better\n(n = 3)", "accuracy\nhigher is better\n(n = 1 or 3)"]


def toy_cloud():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, high=8.0), {"x": 1.0, "label": mt.fade_in(2.0)})
    codes = {"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "label": torch.tensor([[0.0, 0.5], [-0.5, 0.0]])}
    return process, codes, torch.tensor([0, 2])


def test_the_cloud_is_that_of_the_process():
    process, codes, label = toy_cloud()
    (axis,) = widgets.draw_cloud(process, codes, label, t=5, seed=3).axes
    z, _ = process.diffuse(codes, 5, generator=torch.Generator().manual_seed(3))
    assert axis.collections[0].get_offsets().data == pytest.approx(z.numpy())
    colours = axis.collections[0].get_facecolors()[:, :3].tolist()
    assert colours == [pytest.approx(plots.CLASSES[k]) for k in label]
    assert "signal 0.61, noise 0.79" in axis.get_title()  # log SNR 8 - 17 * 5/10 = -1/2


def test_the_bent_curve_injects_what_its_formula_says():
    figure = widgets.draw_curve(0.5, 2.0, bend=2.0, steps=3, n=20)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100, 8.0, -8.0), {"label": lambda u: 0.5 + 1.5 * u**2})
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "label")
    assert line.get_ydata() == pytest.approx(process.injected("label")[1:].numpy())
    assert len(figure.axes[2].collections[0].get_offsets()) == 20
    assert "3 steps: energy distance" in figure.axes[2].get_title()


def test_the_cascade_adds_up_to_the_cost():
    figure = widgets.draw_bound(0.0, 1.0, T=8, n=50, seed=2)
    *terms, total = figure.axes[0].patches
    assert sum(bar.get_width() for bar in terms) == pytest.approx(total.get_width())
    starts = [bar.get_x() for bar in terms]
    assert starts[1:] == pytest.approx([bar.get_x() + bar.get_width() for bar in terms[:-1]])
    g = torch.Generator().manual_seed(2)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(8, 6.0, -6.0), {"x": 1.0, "label": mt.fade_in(1.0)})
    model = mt.exact.LabelledMixture(**MIXTURE, process=process)
    bound = mt.elbo(model, model.draw(50, g), samples=4, generator=g)
    assert total.get_width() == pytest.approx(-bound.total)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][:2] == ["prior", "diffusion"]


def gap_problem(correlation, own_channels):
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    y = [[0.0], [1.0]] if own_channels else [[1.0], [0.0]]
    return covariance, {"x": torch.eye(2, 1, dtype=torch.float64), "y": torch.tensor(y, dtype=torch.float64)}


def test_the_bars_of_the_gap_are_its_terms():
    figure = widgets.draw_gap(gap_problem, start=0.2, end=1.0, T=30, correlation=0.6, own_channels=False)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(30, 6.0, -6.0), {"x": 1.0, "y": mt.fade_in(1.0, start=0.2)})
    (axis,) = figure.axes
    for row, kind in enumerate(("optimal", "isotropic")):
        g = mt.exact.linear_gaussian_gap(*gap_problem(0.6, False), process, kind)
        bars = [bar for bar in axis.patches if bar.get_y() == pytest.approx(row - 0.35)]
        terms = [g.prior, g.moving_target, g.history, g.factorisation, g.reverse]
        assert [-bar.get_width() for bar in bars] == pytest.approx(terms)
        assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(g.bound)
        assert axis.texts[row].get_text().strip() == f"{g.bound:.3f}"
        assert f"{g.gap:.3f}" in figure.get_suptitle()


def mixture_on_the_line(label_weight=0.0):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, 8.0, -8.0), {"x": 1.0, "label": label_weight})
    return mt.exact.LabelledMixture([0.6, 0.4], [[-1.0], [1.2]], [0.3, 0.2], [[1.0], [-1.0]], process)


@pytest.mark.parametrize("t", [0, 5, 10])
def test_the_noised_density_is_that_of_the_process(t):
    """Against draws of z_t: their share left of 0 in ten thousand, 4 standard errors; and the guess is the model's."""
    model, n = mixture_on_the_line(), 10_000
    figure = widgets.draw_noised_density(model, t, reach=6.0)
    outline = torch.from_numpy(figure.axes[0].collections[0].get_paths()[0].vertices)
    top = outline[outline[:, 1] > 0]
    step, left = 12 / 600, top[top[:, 0] < 0]
    assert float(top[:, 1].sum() * step) == pytest.approx(1, abs=1e-3)
    generator = torch.Generator().manual_seed(t)
    z, _ = model.process.diffuse({"x": model.draw(n, generator)["x"]}, t, generator=generator)
    share = float((z < -step / 2).double().mean())
    assert float(left[:, 1].sum() * step) == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5)
    where, guess = (torch.from_numpy(data)[:, None] for data in figure.axes[1].lines[0].get_data())
    assert torch.allclose(guess, model.predict(where, t).estimate["x"])
    assert f"t = {t}: signal" in figure.axes[0].get_title()


def test_the_noised_density_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="x alone"):
        widgets.draw_noised_density(mixture_on_the_line(label_weight=1.0), 5)


def test_the_rules_picture_shows_the_samplers_own_points():
    """Grey true points under the samples; Bayes is at the noise floor, substitution is not, and guidance is Bayes' alone."""
    settings = {"weight": 0.5, "curve": "fade-in", "sampler": "ddim", "steps": 40, "label": 1, "n": 300, "seed": 3}
    (axis,) = widgets.draw_rules(rule="bayes", guidance=2.0, **settings).axes
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(200, 8.0, -8.0), {"x": 1.0, "label": mt.fade_in(0.5)})
    model = mt.exact.LabelledMixture(**MIXTURE, process=process)
    options = {"rule": "bayes", "guidance": 2.0, "sampler": "ddim", "steps": 40}
    g = torch.Generator().manual_seed(3)
    drawn = mt.sample(model, 300, given={"label": torch.tensor([1])}, generator=g, **options)
    assert axis.collections[1].get_offsets().data == pytest.approx(drawn["x"].numpy())
    assert axis.get_title().startswith("bayes x 2, ddim, 40 steps, fade-in W = 0.5")

    def distance(**changes):
        (axis,) = widgets.draw_rules(**{**settings, **changes}).axes
        return float(axis.get_title().rsplit(" ", 1)[1])

    assert distance(rule="bayes") < 0.03 < 0.3 < distance(rule="substitute")
    assert distance(rule="substitute", guidance=4.0) == distance(rule="substitute")
    assert distance(rule="bayes", curve="constant", weight=2.0) < 0.03


def inpainting_models():
    return tuple(masked_image.build("shapes16", variant).eval() for variant in ("masked", "plain"))


@pytest.mark.parametrize("way", ["told", "repeated", "repaint", "sdedit"])
def test_the_inpainting_picture_shows_what_is_known_and_the_ways_own_draws(way):
    model, plain = inpainting_models()
    image = shapes("test", 16, n=3, modalities=("image",)).values["image"]
    figure = widgets.draw_inpainting(model, plain, image, kind="border", hidden=0.3, scene=2, seed=5, way=way, n=2)
    assert [axis.get_title() for axis in figure.axes] == ["image", "known", "draw 1", "draw 2"]
    assert figure.get_suptitle().startswith(f"border, 30% hidden, {way}: ")
    shown = [torch.tensor(axis.images[0].get_array().data).movedim(-1, 0) * 2 - 1 for axis in figure.axes]
    mask = masks(1, 16, "border", 0.3, seed=5)
    assert torch.allclose(shown[0], image[2], atol=1e-6)
    assert torch.allclose(shown[1], image[2] * mask[0], atol=1e-6)
    rows = image[2:].expand(2, -1, -1, -1), mask.expand(2, -1, -1, -1)
    generator = torch.Generator().manual_seed(5)
    drawn = masked_image.inpaint(model if way in ("told", "repeated") else plain, *rows, way, generator=generator)
    assert torch.allclose(torch.stack(shown[2:]), drawn.clamp(-1, 1), atol=1e-5)
    decibel = float(psnr(drawn, rows[0], ~rows[1].bool()).mean())
    assert figure.get_suptitle().endswith(f": {decibel:.1f} dB on average")


def test_the_amplification_picture_shows_guided_draws_and_their_shares():
    figure = widgets.draw_amplification(share=0.7, guidance=3.0, across=2.0, seed=2, n=300)
    mix = mt.exact.planted_mixture(0.7, 2.0)
    drawn = {g: mt.exact.sample_group(mix, [0, 1], 300, g, 50, torch.Generator().manual_seed(2)) for g in (0, 1, 2, 3, 4)}
    shown = torch.as_tensor(figure.axes[1].collections[0].get_offsets().data)
    assert torch.allclose(shown, drawn[3])
    own = [float((x[:, 1] > 0).double().mean()) for x in drawn.values()]
    assert figure.axes[2].lines[0].get_ydata() == pytest.approx(own)
    assert figure.axes[1].get_title() == f"left, guidance 3: {own[3]:.0%} up"


def between():
    model = randomise(image_representation.build("shapes16", "lifted"), 0, scale=0.05).eval()
    value = torch.randn(3, image_representation.COMPONENTS, generator=torch.Generator().manual_seed(0))
    image = shapes("test", 16, n=3, modalities=("image",)).values["image"]
    return model, Dataset("three", {"image": image, "representation": value})


def test_the_picture_between_representations_shows_draws_for_what_lies_between():
    model, scenes = between()
    figure = widgets.draw_between(model, scenes, first=2, second=1, guidance=2.0, seed=4, n=2)
    shown = torch.stack([torch.tensor(axis.images[0].get_array().data).movedim(-1, 0) * 2 - 1 for axis in figure.axes])
    shown, value = shown.reshape(5, 3, 3, 16, 16), scenes.values["representation"]
    assert torch.allclose(shown[0, 0], scenes.values["image"][2], atol=1e-6)
    assert torch.allclose(shown[4, 0], scenes.values["image"][1], atol=1e-6)
    given = {"representation": (0.75 * value[2] + 0.25 * value[1]).expand(2, -1)}
    options = {"rule": "conditioned", "present": {"image"}, "guidance": 2.0, "steps": 25, "sampler": "ddim"}
    drawn = mt.sample(model, 2, given=given, generator=torch.Generator().manual_seed(4), **options)["image"]
    assert torch.allclose(shown[1, 1:], drawn.clamp(-1, 1), atol=1e-5)


# ---- planning ----


def test_a_plan_is_arithmetic_on_counted_costs():
    """Shares and rings by hand; counted costs against a network that exists."""
    net = mt.UNet((3, 64, 64), 16, (1, 2, 2, 3), blocks=2, attention=(8,))
    one, many = widgets.plan(16), widgets.plan(16, devices=4, accumulate=2, bf16=True)
    size = sum(p.numel() for p in [*net.parameters(), *net.readout((3, 64, 64)).parameters()])
    assert one.parameters == many.parameters == size
    assert sum(list(one.memory.values())[:4]) == 5 * 4 * size
    assert many.memory["activations"] == pytest.approx(one.memory["activations"] / 16)
    assert one.exchange == 0
    assert many.exchange == pytest.approx(2 * 3 / 4 * 4 * size / 50e9)
    assert one.seconds == pytest.approx(1e6 * one.flops / (0.3 * 400e12))
    assert many.seconds == pytest.approx(one.seconds / 4)
    assert one.step == pytest.approx(256e-6 * one.seconds)


def test_the_plan_board_draws_what_its_sliders_say():
    figure = widgets.draw_plan(16, batch=64, devices=2)
    title = figure.axes[0].get_title()
    assert f"{widgets.plan(16).parameters / 1e6:.1f}M parameters" in title
    assert "gradients travel" in title
    assert "gradients travel" not in widgets.draw_plan(16).axes[0].get_title()


# ---- boards ----


def pictures():
    return shapes("test", 16, n=3, modalities=("image",)).values["image"]


def small_between():
    """As `between`, with a network that costs nothing."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(25), {"image": 1.0, "representation": 0.0})
    modalities = {"image": mt.Image((3, 4, 4)), "representation": mt.Encoded((2,), "lift", tell=True)}
    model = mt.MTDiffusion(process, modalities, mt.MLP((3, 4, 4), width=8, blocks=1), (3, 4, 4))
    return model.eval(), Dataset("three", {"image": torch.zeros(3, 3, 4, 4), "representation": torch.eye(3, 2)})


def transitions():
    return image_transition.build("shapes16", "transition").eval(), image_transition.pairs("shapes16", "test", n=12)


# What a board draws with, how it is made, and a new value for each of its controls.
BOARDS = {
    "draw_amplification": (widgets.amplification_board, {"share": 0.6, "guidance": 0.5, "across": 2.5, "seed": 4}),
    "draw_between": (
        lambda: widgets.representation_board(*small_between()), {"first": 1, "second": 2, "guidance": 0.0, "seed": 5}
    ),
    "draw_any": (
        lambda: widgets.any_board(any_model(), any_to_any.world("shapes16", "test")),
        {"given": ("image", "label"), "words": "a red circle", "painted": [1] * 256, "scene": 2, "steps": 5, "seed": 3},
    ),
    "draw_bound": (widgets.bound_board, {"start": 0.5, "end": 2.0, "T": 2, "low": -8.0}),
    "draw_class": (
        lambda: widgets.class_sampler(image_label_model(), n=1), {"steps": 2, "label": 0, "guidance": 0.0, "seed": 3}
    ),
    "draw_cloud": (lambda: widgets.cloud_slider(*toy_cloud()), {"t": 10}),
    "draw_curve": (widgets.curve_bender, {"start": 0.5, "end": 0.0, "bend": 2.0, "steps": 2}),
    "draw_gap": (
        lambda: widgets.gap_board(gap_problem), {"start": 0.0, "end": 2.0, "T": 10, "correlation": 0.0, "own_channels": True}
    ),
    "draw_inpainting": (
        lambda: widgets.inpainting_board(*inpainting_models(), pictures()),
        {"kind": "pixels", "hidden": 0.9, "scene": 2, "seed": 7, "way": "sdedit"},
    ),
    "draw_noised_density": (lambda: widgets.noised_density_slider(mixture_on_the_line()), {"t": 10}),
    "draw_plan": (
        widgets.plan_board, {"base": 16, "size": 128, "batch": 64, "devices": 4, "accumulate": 2, "bf16": True}
    ),
    "draw_rules": (
        widgets.rule_board,
        {
            "steps": 5, "rule": "conditioned", "sampler": "heun", "curve": "fade-in", "guidance": 3.0, "weight": 0.0,
            "label": 0,
        },
    ),
    "draw_transition": (
        lambda: widgets.transition_board(*transitions()),
        {"steps": 4, "direction": "night to day", "scene": 1, "seed": 6},
    ),
}  # fmt: skip


def any_model():
    """A model that draws all five modalities and has learned nothing."""
    model = randomise(any_to_any.build("shapes16", "shared"), scale=0.05).eval()
    model.card = {"taught": list(model.modalities)}
    return model


def boards():
    return [board for board in vars(widgets).values() if isinstance(board, widgets.Board)]


@pytest.fixture
def drawn(request, monkeypatch):
    """What a board's draw function is called with, all arguments by name, and the figures that are then shown."""
    (board,) = (board for board in boards() if board.draw.__name__ == request.param)
    draw, calls, shown = board.draw, [], []

    @functools.wraps(draw)
    def spy(*args, **kwargs):
        calls.append(inspect.signature(draw).bind(*args, **kwargs).arguments)
        fewer = {"n": 4} if "n" in inspect.signature(draw).parameters and "n" not in kwargs else {}
        return draw(*args, **kwargs, **fewer)

    monkeypatch.setattr(board, "draw", spy)
    monkeypatch.setattr("mtdiff.widgets.base.show", lambda figure, alt: shown.append(figure))
    return request.param, calls, shown


def test_every_board_is_tried():
    assert {name for name in vars(widgets) if name.startswith("draw_")} == set(BOARDS)
    assert sorted(board.draw.__name__ for board in boards()) == sorted(BOARDS)


@pytest.mark.parametrize("drawn", BOARDS, indirect=True)
def test_every_control_of_a_board_redraws_with_its_new_value(drawn):
    name, calls, shown = drawn
    make, changes = BOARDS[name]
    controls = make().controls
    assert set(changes) == set(controls)
    for k, (control, value) in enumerate(changes.items(), start=1):
        assert len(calls) == len(shown) == k
        assert controls[control].value != value
        controls[control].value = value
        assert calls[-1] == {**calls[-2], control: value}
    assert len({id(figure) for figure in shown}) == len(calls) == len(changes) + 1


def test_a_picture_is_faint_until_it_is_of_its_setting_and_a_wrong_setting_says_why(monkeypatch):
    said, shown = [], []

    def draw(value):
        said.append(widget.said.value if shown else "")
        if value == 2:
            raise ValueError("2 < 3 is too little")
        return plt.figure()

    monkeypatch.setattr("mtdiff.widgets.base.show", lambda figure, alt: (plt.close(figure), shown.append(alt)))
    widget = widgets.Board(draw, "of {value}", value=(1, 0, 3))()
    faint = f".mtdiff-{widget.children[-1].model_id} "
    assert f"mtdiff-{widget.children[-1].model_id}" in widget.children[-1]._dom_classes
    assert faint not in widget.said.value
    widget.controls["value"].value = 2
    assert faint in said[1]
    assert "drawing" in said[1]
    assert faint in widget.said.value
    assert "2 &lt; 3 is too little" in widget.said.value
    widget.controls["value"].value = 3
    assert shown == ["of 1", "of 3"]
    assert faint not in widget.said.value


@pytest.mark.parametrize("drawn", ["draw_cloud"], indirect=True)
def test_an_error_of_a_redraw_comes_out(drawn, monkeypatch):
    """So that no test of a board passes over a picture that cannot be drawn."""
    controls = BOARDS["draw_cloud"][0]().controls
    monkeypatch.setattr(mt.ForwardProcess, "diffuse", None)
    with pytest.raises(TypeError, match="NoneType"):
        controls["t"].value = 10
