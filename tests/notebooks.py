"""Keeping the pairs of the course: NN_topic.py is the source, NN_topic.ipynb the executed page.

    python tests/notebooks.py [--all] [NAME ...]      execute what is out of date (or everything) and write the page
    python tests/notebooks.py --html FILE NAME        execute one notebook and write it as a web page, not touching the pair
    python tests/notebooks.py --slides FOLDER [NAME ...]   write pages, as they are, as slides

A page is out of date when the code of its source, or a shipped checkpoint or result file that it names, has changed since
it was executed. Text and tags are carried over without that; so are the minutes of exercises, which teaching.md says.
"""

import argparse
import base64
import functools
import hashlib
import html
import io
import os
import re
import sys
from pathlib import Path

import jupytext
import nbformat
import ziamath
from jinja2 import DictLoader, Template
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

from mtdiff.course import HIDDEN, fold, tags

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
GUIDE = FOLDER / "teaching.md"
PAGES = ROOT / "build"
SLIDES = ROOT / "tests" / "slides.html.j2"
FETCHING = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
"""The parts of nbconvert's page that would load scripts from elsewhere: left out."""
FOLDING = (
    "{% block codecell %}{% set folded = 'solution' in cell.metadata.get('tags', []) %}"
    "{% if folded %}<details><summary>Solution</summary>{% endif %}{{ super() }}{% if folded %}</details>{% endif %}"
    "{% endblock %}"
)
"""A solution opens by a click: nbconvert's own template knows no folded cells."""
SETUP = """\
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("mtdiff") is None:  # as on Colab: get the course, and what it needs
    subprocess.run(["git", "clone", "-q", "https://github.com/{repository}"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "./{folder}[notebooks]"], check=True)
    os.chdir("{folder}/notebooks")
"""
"""The first code cell of a notebook whose repository has an address; see `setup`."""
ziamath.config.svg2, ziamath.config.precision = False, 2  # each picture holds its own glyphs


def sources() -> list[Path]:
    """All notebook sources, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def fingerprint(source: Path) -> str:
    """What outputs depend on: the code, and the shipped checkpoints and result files that it names."""
    text = "\0".join(cell.source for cell in code(jupytext.read(source)))
    digest = hashlib.sha256(text.encode())
    files = [ROOT / "data" / "checkpoints" / name / "*" for name in re.findall(r'mt\.load\("([^"]+)"', text)]
    named = [re.sub(r"{.*?}", "*", name) for name in re.findall(r'"([\w*{}-]+\.json)"', text)]
    files += [ROOT / "data" / "results" / name for name in named]
    for pattern in sorted(set(files)):
        for file in sorted(pattern.parent.glob(pattern.name)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def code(notebook) -> list:
    """Its code cells, but the one of `SETUP`."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and "setup" not in tags(cell)]


def cells(notebook) -> list[tuple]:
    """What both halves of a pair must agree on: type, source and tags of each cell."""
    return [(c.cell_type, c.source, tuple(tag for tag in tags(c) if tag != HIDDEN)) for c in notebook.cells]


def out_of_date(source: Path) -> bool:
    """Whether the page is missing, or was executed from something else."""
    page = source.with_suffix(".ipynb")
    return not page.is_file() or nbformat.read(page, 4).metadata.get("mtdiff") != fingerprint(source)


def execute(source: Path):
    """The executed notebook of a source, without traces of when and where it ran."""
    notebook = jupytext.read(source)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        coalesce_streams=True,
        record_timing=False,
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [clean(output) for output in cell.outputs]
    return finished(notebook, source)


def refreshed(source: Path):
    """The page of a source whose code has not changed: text and tags are new, outputs stay."""
    notebook, page = jupytext.read(source), nbformat.read(source.with_suffix(".ipynb"), 4)
    for cell, old in zip(code(notebook), code(page), strict=True):
        cell.outputs = old.outputs
    return finished(notebook, source)


def finished(notebook, source: Path):
    """An executed notebook with what follows from its tags and outputs, and with the stamp of its source.

    A solution is folded away. A cell tagged so is a slide, and each cell with figures is one below it.
    """
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        for numbered in [cell, *(output for output in cell.outputs if "execution_count" in output)]:
            numbered.execution_count = count
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k:02d}"
        drawn = figures(cell) and not {"exercise", "check", "solution"} & {*tags(cell)}
        kind = "slide" if "slide" in tags(cell) else "subslide" if drawn else "skip"
        cell.metadata["slideshow"] = {"slide_type": kind}
        if "solution" in tags(cell):
            fold(cell)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}, "mtdiff": fingerprint(source)}
    )
    notebook.nbformat_minor = 5
    return notebook


def figures(cell) -> list:
    """The outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def timed(text: str, number: str) -> str:
    """The source of a notebook, in which exercises say how hard they are and how long they take: what teaching.md says."""
    rows = re.findall(r"^\| (\d\d) \| (\d) \| [^|]+ \| (\w+) \| (\d+) \|$", GUIDE.read_text(), re.M)
    effort = {exercise: f", {level}, {minutes} minutes" for name, exercise, level, minutes in rows if name == number}

    def heading(match) -> str:
        exercise, kind, title, rest = match.groups()
        first = f"# **Exercise {exercise} ({kind}{effort.get(exercise, '')}){title}**"
        return first + (f"\n#{rest}" if rest and len(first + rest) > 120 else rest)

    effort_said = r"(?:, \w+, \d+ minutes)?"
    return re.sub(rf"^# \*\*Exercise (\d) \((.*?){effort_said}\)([.:] .*?)\*\*(.*)$", heading, text, flags=re.M)


def setup(repository: str) -> str:
    """What gets the course, of OWNER/NAME on GitHub, where it is missing."""
    return SETUP.format(repository=repository, folder=repository.split("/")[1])


def reachable(text: str, repository: str) -> str:
    """The source of a notebook with `setup` as its first code cell, once, so that it runs wherever it is opened."""
    text = re.sub(r'^# %% tags=\["setup"\]\n(?:(?!# %%).*\n)*', "", text, flags=re.M)
    first = re.search(r"^# %%(?! \[markdown\])", text, re.M).start()
    return f'{text[:first]}# %% tags=["setup"]\n{setup(repository)}\n{text[first:]}'


def clean(output):
    """An output without views that need a live kernel, pictures with 256 colours, of a progress bar only its last state."""
    if "data" in output:
        output.data.pop("application/vnd.jupyter.widget-view+json", None)
        if "image/png" in output.data:
            output.data["image/png"] = palette(output.data["image/png"])
    if output.output_type == "stream":
        output.text = "\n".join(line.rsplit("\r", 1)[-1] for line in output.text.split("\n"))
    return output


def palette(png: str) -> str:
    """A base64 PNG with at most 256 colours: a third of the size, for plots no visible difference."""
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


@functools.lru_cache(None)
def formula(latex: str, display: bool = False) -> str:
    """A formula as a picture in the page: it needs no script, no font and no network. Its source is the picture's title.

    Raises:
        ValueError: a command that is not understood.
    """
    latex = " ".join(latex.split())
    plain = re.sub(r"\\mathbb ?(\w)", r"\\mathbb{\1}", latex)  # what latex2mathml does not read as TeX does
    plain = re.sub(r"(\\[bB]ig+[lr]?)\\(?:\||[lr]?Vert)", r"\1‖", plain)
    plain = re.sub(r"(\\operatorname{\w+}) *(?=[A-Za-z\\])", r"\1\\,", plain)
    found = ziamath.Latex(plain, size=16, inline=not display, title=latex)
    if "\\" in "".join(found.mathml.itertext()):
        raise ValueError(f"a formula is not understood: {latex!r}")
    place = "display: block; margin: 1em auto" if display else f"vertical-align: {found.getyofst() - found.margin:.1f}px"
    picture = re.sub(r' xmlns(:xlink)?="[^"]*"', "", found.svg())  # names that HTML does not need, and headings spoil
    return picture.replace("<svg ", f'<svg role="img" style="max-width: 100%; height: auto; {place}" ', 1)


class Renderer(IPythonRenderer):
    """Markdown to HTML: formulas as pictures, links to the course's files from where the page is (`path`)."""

    def block_math(self, body: str) -> str:
        return formula(body, display=True)

    def inline_math(self, body: str) -> str:
        return formula(body)

    def latex_environment(self, name: str, body: str) -> str:
        return formula(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        elsewhere = re.match(r"[a-z]+:|#", url)
        return super().link(text, url if elsewhere else f"{self.path}/{url}", title)


def to_html(folder: Path, **options):
    """A function from Markdown to HTML for a page in a folder; options of nbconvert's renderer."""
    renderer = functools.partial(Renderer, escape=False, path=os.path.relpath(FOLDER, folder), **options)
    return lambda text: MarkdownWithMath(renderer=renderer()).render(text)


def deck(notebook, folder: Path = PAGES / "slides") -> str:
    """The slides of a page as one HTML file for a folder. It fetches nothing; arrows turn slides, printing makes a PDF."""
    slides, markdown = [], to_html(folder, exclude_anchor_links=True)
    for cell in notebook.cells:
        if cell.metadata.slideshow.slide_type == "slide":
            slides.append(markdown(cell.source))
        elif cell.metadata.slideshow.slide_type == "subslide":
            each = '<img alt="{}" src="data:image/png;base64,{}">'
            shown = [(html.escape(o.metadata["image/png"]["alt"]), o.data["image/png"]) for o in figures(cell)]
            slides.append("".join(each.format(*figure) for figure in shown))
    title = notebook.cells[0].source.splitlines()[0].strip("# ")
    return Template(SLIDES.read_text()).render(title=html.escape(title), slides=slides)


def web_page(notebook, folder: Path = PAGES) -> str:
    """An executed notebook as one HTML file for a folder. It fetches nothing; figures have their own descriptions."""
    blocks = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in FETCHING)
    template = DictLoader({"page.html.j2": "{% extends 'lab/index.html.j2' %}" + blocks + FOLDING})
    exporter = HTMLExporter(template_file="page.html.j2", extra_loaders=[template])
    exporter.register_filter("markdown2html", to_html(folder))
    page, _ = exporter.from_notebook_node(notebook)
    for cell in notebook.cells:
        for output in figures(cell):
            alt = html.escape(output.metadata["image/png"]["alt"])
            page = page.replace('alt="No description has been provided for this image"', f'alt="{alt}"', 1)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks such as 00_quickstart; default: all")
    parser.add_argument("--all", action="store_true", help="execute even what is up to date")
    parser.add_argument("--html", type=Path, help="write this web page instead of the .ipynb")
    parser.add_argument("--slides", type=Path, help="write slides to this folder")
    arguments = parser.parse_args()
    chosen = [FOLDER / f"{name}.py" for name in arguments.names] or sources()
    missing = [source.stem for source in chosen if not source.is_file()]
    if missing:
        sys.exit(f"no such notebook: {missing}; there are {[s.stem for s in sources()]}")
    for source in chosen:
        if arguments.html:
            print(f"executing {source.stem} ...", flush=True)
            arguments.html.parent.mkdir(parents=True, exist_ok=True)
            arguments.html.write_text(web_page(execute(source), arguments.html.parent))
            continue
        page = source.with_suffix(".ipynb")
        if arguments.slides:
            arguments.slides.mkdir(parents=True, exist_ok=True)
            place = (arguments.slides / source.stem).with_suffix(".html")
            place.write_text(deck(nbformat.read(page, 4), arguments.slides))
            print(place)
            continue
        source.write_text(timed(source.read_text(), source.stem[:2]))
        if arguments.all or out_of_date(source):
            print(f"executing {source.stem} ...", flush=True)
            nbformat.write(execute(source), page)
        elif (notebook := refreshed(source)) != nbformat.read(page, 4):
            nbformat.write(notebook, page)
            print(f"{source.stem}: text and tags are carried over")
        else:
            print(f"{source.stem} is up to date")


if __name__ == "__main__":
    main()
