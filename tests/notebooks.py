"""Keeping the pairs of the course: NN_topic.py is the source, NN_topic.ipynb the executed page.

    python tests/notebooks.py [--all] [NAME ...]     execute what is out of date (or everything) and write the page
    python tests/notebooks.py --html FILE NAME       execute one notebook and write it as a web page, not touching the pair

A page is out of date when its source, or a shipped checkpoint or result file that it names, has changed since it was
executed.
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
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
PAGES = ROOT / "build"
FETCHING = ("html_head_js", "jupyter_widgets", "html_head_js_mathjax", "html_head_js_mermaidjs")
"""The parts of nbconvert's page that would load scripts from elsewhere: left out."""
ziamath.config.svg2, ziamath.config.precision = False, 2  # each picture holds its own glyphs


def sources() -> list[Path]:
    """All notebook sources, in order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def fingerprint(source: Path) -> str:
    """What a page depends on: its source, and the shipped checkpoints and result files that it names."""
    text = source.read_text()
    digest = hashlib.sha256(text.encode())
    files = [ROOT / "data" / "checkpoints" / name / "*" for name in re.findall(r'mt\.load\("([^"]+)"', text)]
    named = [re.sub(r"{.*?}", "*", name) for name in re.findall(r'"([\w*{}-]+\.json)"', text)]
    files += [ROOT / "data" / "results" / name for name in named]
    for pattern in sorted(set(files)):
        for file in sorted(pattern.parent.glob(pattern.name)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def cells(notebook) -> list[tuple]:
    """What both halves of a pair must agree on: type, source and tags of each cell."""
    return [(c.cell_type, c.source, tuple(c.metadata.get("tags", []))) for c in notebook.cells]


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
    for k, cell in enumerate(notebook.cells):
        cell.id = f"cell-{k:02d}"
        if cell.cell_type == "code":
            cell.outputs = [clean(output) for output in cell.outputs]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}, "mtdiff": fingerprint(source)}
    )
    notebook.nbformat_minor = 5
    return notebook


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


def web_page(notebook, folder: Path = PAGES) -> str:
    """An executed notebook as one HTML file for a folder. It fetches nothing; figures have their own descriptions."""
    blocks = "".join(f"{{% block {name} %}}{{% endblock %}}" for name in FETCHING)
    template = DictLoader({"page.html.j2": "{% extends 'lab/index.html.j2' %}" + blocks})
    exporter = HTMLExporter(template_file="page.html.j2", extra_loaders=[template])
    renderer = functools.partial(Renderer, escape=False, path=os.path.relpath(FOLDER, folder))
    exporter.register_filter("markdown2html", lambda text: MarkdownWithMath(renderer=renderer()).render(text))
    page, _ = exporter.from_notebook_node(notebook)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = html.escape(output.metadata["image/png"]["alt"])
                page = page.replace('alt="No description has been provided for this image"', f'alt="{alt}"', 1)
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="notebooks such as 00_quickstart; default: all")
    parser.add_argument("--all", action="store_true", help="execute even what is up to date")
    parser.add_argument("--html", type=Path, help="write this web page instead of the .ipynb")
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
        elif arguments.all or out_of_date(source):
            print(f"executing {source.stem} ...", flush=True)
            nbformat.write(execute(source), source.with_suffix(".ipynb"))
        else:
            print(f"{source.stem} is up to date")


if __name__ == "__main__":
    main()
