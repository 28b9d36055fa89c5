"""The course as a web site that reads offline: pages, measured results and docstrings, made of what is in the repository.

    python tests/website.py OUT [--repository OWNER/NAME] [--address URL] [--only NAME ...]
    python tests/website.py --badges OWNER/NAME

Nothing is executed: a notebook's page shows the outputs that are stored in it. Formulas are pictures, and nothing is fetched
from elsewhere. With the name of the repository on GitHub each notebook has links to Colab and Binder, and the second form
writes them into the README, and into each notebook a first cell that gets the course where it is missing; with the site's
address a link to it shows a picture elsewhere.

Sphinx (with MyST and Furo) renders. What it reads is written to a folder beside OUT, and this module is its extension, too.
"""

import argparse
import ast
import base64
import functools
import html
import inspect
import io
import json
import re
import shutil
import sys
import types
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlparse

import matplotlib.pyplot as plt
import nbformat
import torch
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import docutils_namespace

import mtdiff as mt
from mtdiff.course import tags
from mtdiff.datasets.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, VOCABULARY, palette
from notebooks import FOLDER, ROOT, deck, figures, formula, reachable, sources
from notebooks import setup as first_cell

STYLE = Path(__file__).with_suffix(".css")
LIVE = Path(__file__).parent / "live"
"""The pages on which a model runs, and their scripts."""
README = (ROOT / "README.md").read_text()
COURSE = re.findall(r"^\| \[(\d\d [^\]]+)\]\(notebooks/(\S+)\.ipynb\) \| (.+) \| .+ \|$", README, re.M)
"""Title, file and question of each notebook."""
THUMBNAILS = {"00": 1, "06": 1, "08": 2, "11": 1}
"""Which figure stands for a notebook on the map, where it is not the first."""
PAGES = {
    "The course": ["live", "any", *(f"notebooks/{file}" for _, file, _ in COURSE)],
    "The method": ["notebooks/theory", "symbols", "notebooks/walkthrough", "notebooks/measured", "notebooks/relatives"],
    "Teaching": ["notebooks/teaching", "notebooks/quiz", "notebooks/errata"],
    "The library": ["README", "notebooks/own", "api/index"],
    "The project": ["CHANGELOG", "CONTRIBUTING", "CODE_OF_CONDUCT"],
}
WAYS_IN = {"README": "How to start on a computer of your own", "notebooks/teaching": "How to teach it"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
BADGES = r"^\[!\[Open in Colab\].*\n\n"
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$", re.S)
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.S | re.M)
API = """
.. automodule:: {module}
   :members:
   :ignore-module-all:
   :show-inheritance:
   :member-order: bysource
"""


# ---- what Sphinx reads ----


class Source:
    """The folder that Sphinx reads, with the pages of the repository at their own places."""

    def __init__(self, folder: Path, repository: str = "", only: Collection[str] = ()):
        self.folder, self.repository = folder, repository
        self.notebooks = [file for _, file, _ in COURSE if not only or file in only]
        self.tests: dict[str, list[str]] = {}
        self.files: set[str] = set()

    def write(self) -> None:
        """Write all of it."""
        (self.folder / "_extra").mkdir(parents=True)
        for name in (name for group in PAGES.values() for name in group):
            for file in (ROOT / f"{name}.md", ROOT / ".github" / f"{name}.md"):
                if file.is_file():
                    self.page(f"{name}.md", file.read_text() + self.decks() * (name == "notebooks/teaching"))
        for name in self.notebooks:
            self.page(f"notebooks/{name}.md", self.notebook(name))
            self.put(f"_extra/slides/{name}.html", self.slides(name))
        self.page("symbols.md", symbols())
        self.page("live.md", (LIVE / "page.md").read_text())
        self.page("any.md", (LIVE / "any.md").read_text())
        self.page("index.md", self.map())
        self.api()
        for file, names in self.tests.items():
            self.put(f"{file[:-3]}.md", tests(file, names))
        for file in self.files:
            self.put(f"{file}.md", f"---\norphan: true\n---\n# {file}\n\n```text\n{(ROOT / file).read_text()}\n```\n")
        self.put("_static/site.css", STYLE.read_text())
        self.put("_static/live/weights.js", weights("image-label/digits"))
        self.put("_static/live/any_weights.js", weights("any-to-any/shapes16") + scenes())
        for script in LIVE.glob("*.js"):
            self.put(f"_static/live/{script.name}", script.read_text())
        card(self.folder / "_static" / "card.png")

    def put(self, name: str, text: str) -> None:
        """A file of the folder."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def page(self, name: str, text: str) -> None:
        """A page in Markdown; links lead to pages of the site, code and tests that are named have one."""
        place = (ROOT / name).parent

        def link(match: re.Match) -> str:
            picture, said, path, _ = match.groups()
            target = (place / path).resolve()
            file = target.relative_to(ROOT).as_posix()
            inside = file.removesuffix(target.suffix)
            if not target.exists():
                raise RuntimeError(f"{name} leads to {path}, which is not there")
            if picture:
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(target, self.folder / file)
                return match[0]
            if target.suffix == ".ipynb":
                section = re.fullmatch(r"\d\d\s§(\d+)", said)
                if target.stem not in self.notebooks:
                    return said
                return f"[{said}](#{target.stem}-{section[1]})" if section else f"[{said}]({path[:-6]}.md)"
            if file.startswith("mtdiff/"):
                module = re.sub(r"/(__init__)?", ".", inside).strip(".")
                found = said.strip("`")
                return f"{{py:obj}}`{found} <{module}.{found}>`"
            if file.startswith("tests/test_") and f"\ndef {said.strip('`')}(" in target.read_text():
                self.tests.setdefault(file, []).append(said.strip("`"))
                return f"[{said}](#{target.stem}-{said.strip('`')})"
            if any(inside.removeprefix(".github/") in group for group in PAGES.values()):
                return match[0].replace(".github/", "")
            self.files.add(file)
            return f"[{said}]({path}.md)"

        if name == "notebooks/theory.md":
            text = re.sub(r"^## (\d)\. ", r"(theory-\1)=\n\g<0>", text, flags=re.M)
        parts = CODE.split(re.sub(BADGES, "", text, flags=re.M))
        self.put(name, "".join(LINK.sub(link, p) if not p.startswith("```") else p for p in joined(parts)))

    def notebook(self, name: str) -> str:
        """The page of a notebook: text, code, stored outputs; what is too wide scrolls, a solution is folded."""
        page = nbformat.read(FOLDER / f"{name}.ipynb", 4)
        self.put(f"notebooks/{name}.ipynb", (FOLDER / f"{name}.ipynb").read_text())
        parts, count = [], 0
        for cell in page.cells:
            if cell.cell_type == "markdown":
                parts.append(re.sub(r"^## (\d+) · ", rf"({name}-\1)=\n\g<0>", cell.source, flags=re.M))
                continue
            shown = [f"```python\n{cell.source}\n```"]
            for output in cell.outputs:
                if output in figures(cell):
                    count += 1
                    file = f"figures/{name[:2]}-{count}.png"
                    (self.folder / "notebooks" / "figures").mkdir(parents=True, exist_ok=True)
                    (self.folder / "notebooks" / file).write_bytes(base64.b64decode(output.data["image/png"]))
                    alt = " ".join(output.metadata["image/png"]["alt"].split())
                    image = f"```{{image}} {file}\n:alt: {alt}\n:loading: lazy\n```"
                    shown.append(f":::{{container}} plot\n{image}\n:::")
                else:
                    shown.append(words(output))
            text = "\n\n".join(shown)
            folded = "solution" in tags(cell)
            parts.append(f"<details><summary>Solution</summary>\n\n{text}\n\n</details>" if folded else text)
        title, _, rest = parts[0].partition("\n")
        return "\n\n".join([title, self.ways(name), rest, *parts[1:]])

    def ways(self, name: str) -> str:
        """How to run a notebook."""
        ways = [f"{{download}}`the notebook <{name}.ipynb>`", f'<a href="../slides/{name}.html">slides</a>']
        ways += ["`make lab` opens the course in JupyterLab"]
        install = ""
        if self.repository:
            colab, binder = addresses(self.repository, name)
            ways += [f"[Binder]({binder})", f"[Colab]({colab})"]
            if 'tags=["setup"]' not in (FOLDER / f"{name}.py").read_text():
                ways[-1] += ", there with a first cell of these lines:"
                install = f"\n```python\n{first_cell(self.repository)}```\n"
        return f"```{{rst-class}} ways\n```\n{' · '.join(ways)}\n{install}"

    def slides(self, name: str) -> str:
        """The slides of a notebook, whose links lead to pages of the site."""

        def link(match: re.Match) -> str:
            page, kind, anchor, said = match.groups()
            there = kind == "md" or page in self.notebooks
            return f'<a href="../notebooks/{page}.html{anchor}">{said}</a>' if there else said

        text = deck(nbformat.read(FOLDER / f"{name}.ipynb", 4), ROOT / "slides")
        return re.sub(r'<a href="\.\./notebooks/([^"#]*)\.(md|ipynb)([^"]*)">(.*?)</a>', link, text, flags=re.S)

    def decks(self) -> str:
        """The part of the teacher's guide that leads to all slides."""
        titles = {file: title for title, file, _ in COURSE}
        decks = [f'<li><a href="../slides/{file}.html">{html.escape(titles[file])}</a></li>' for file in self.notebooks]
        return f"\n## Slides\n\nArrows or touch turn them; printed, they are a PDF.\n\n<ul>\n{chr(10).join(decks)}\n</ul>\n"

    def map(self) -> str:
        """The first page: what it is, and the notebooks by their pictures and questions."""
        cards = []
        for title, file, question in COURSE:
            if file not in self.notebooks:
                continue
            thumbnail(file).save(picture := io.BytesIO(), "PNG", optimize=True)
            (self.folder / "_static" / "map").mkdir(parents=True, exist_ok=True)
            (self.folder / "_static" / "map" / f"{file}.png").write_bytes(picture.getvalue())
            cards.append(
                f'<a class="card" href="notebooks/{file}.html"><img src="_static/map/{file}.png" alt="" loading="lazy">'
                f"<b>{html.escape(title)}</b><span>{html.escape(question)}</span></a>"
            )
        trees = [
            f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(filter(self.has, names)) + "\n```\n"
            for caption, names in PAGES.items()
        ]
        grid = f'<div class="map">\n{"".join(cards)}\n</div>'
        live = (
            "{doc}`A model in this page <live>` draws the digit that you choose, in your browser; {doc}`another one <any>` "
            "draws the image, the depth and the segmentation of your words, or reads words from a picture."
        )
        pages = [page for names in PAGES.values() for page in names]
        ways = "\n".join(f"- {{doc}}`{said} <{page}>`" for page, said in WAYS_IN.items() if page in pages)
        return f"{README.partition('## Start')[0]}\n## The course\n\n{live}\n\n{ways}\n\n{grid}\n\n{''.join(trees)}"

    def has(self, page: str) -> bool:
        """Whether a page of the table of contents is on this site: a notebook may have been left out."""
        return page.split("/")[-1] in self.notebooks or not re.match(r"notebooks/\d\d_", page)

    def api(self) -> None:
        """A page of docstrings for each room of the library, and one that lists the rooms."""
        rooms: dict[str, list[str]] = {}
        for file in sorted((ROOT / "mtdiff").rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if module not in {"mtdiff", "mtdiff.__main__"}:
                rooms.setdefault(module.split(".")[1], []).append(module)
        for room, modules in rooms.items():
            parts = [heading(f"mtdiff.{room}", "=")]
            for module in modules:
                parts += [heading(module, "-")] * (module != f"mtdiff.{room}") + [API.format(module=module)]
            self.put(f"api/{room}.rst", "\n".join(parts))
        listed = "".join(f"{room}\n" for room in rooms)
        table = re.search(r"^\| room \| holds \|\n.*?\n\n", README, re.S | re.M)[0]
        table = re.sub(r"`(\w+)/?`", lambda m: f"[`{m[1]}`]({m[1]}.rst)" if m[1] in rooms else m[0], table)
        names = "".join(f"| {public(name)} | {summary(name)} |\n" for name in sorted(mt.__all__, key=str.lower))
        names = f"## `import mtdiff as mt`\n\n| name | what |\n|---|---|\n{names}"
        toctree = f"```{{toctree}}\n:hidden:\n\n{listed}```\n"
        self.put("api/index.md", f"# Modules\n\n{table}\n{names}\n{toctree}")


def public(name: str) -> str:
    """A link to the docstring of a public name, in Markdown."""
    found = getattr(mt, name)
    if isinstance(found, types.ModuleType):
        return f"[`{name}`]({name}.rst)"
    home = getattr(found, "__module__", None) or next(home for home, names in mt.HOMES.items() if name in names.split())
    return f"{{py:obj}}`{name} <{home}.{name}>`" if callable(found) else f"`{name}`"


def summary(name: str) -> str:
    """The first sentence of a public name's docstring."""
    found = getattr(mt, name)
    return escaped((inspect.getdoc(found) if callable(found) or inspect.ismodule(found) else repr(found)).splitlines()[0])


def escaped(line: str, ticks: str = "`") -> str:
    """Plain text with code in backticks, where a formula's signs are signs and *emphasis* is kept."""
    parts = re.split(r"`([^`]*)`", line)
    parts[::2] = [re.sub(r"(\*\w+\*)|([*|_\\<\[])", lambda m: m[1] or f"\\{m[2]}", part) for part in parts[::2]]
    parts[1::2] = [f"{ticks}{code}{ticks}" for code in parts[1::2]]
    return "".join(parts)


def joined(parts: list[str]) -> Iterator[str]:
    """The parts of a text, blocks of code each for itself and code in a line left in its sentence."""
    text = ""
    for part in parts:
        if part.startswith("```"):
            yield text
            yield part
            text = ""
        else:
            text += part
    yield text


def heading(text: str, line: str) -> str:
    """A heading in reStructuredText."""
    return f"{text}\n{line * len(text)}\n"


def words(output) -> str:
    """An output that is no picture, in Markdown."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    if "text/markdown" in output.data:
        return output.data["text/markdown"]
    if "text/html" in output.data:
        return f'<div class="verdict">{output.data["text/html"]}</div>'
    return f"```text\n{output.data['text/plain']}\n```"


def tests(file: str, names: list[str]) -> str:
    """The tests of a file that pages name."""
    text = (ROOT / file).read_text()
    found = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    parts = [f"---\norphan: true\n---\n# {file}\n\nThe tests that other pages name.\n"]
    for name in dict.fromkeys(names):
        begin = min(node.lineno for node in [found[name], *found[name].decorator_list])
        code = "\n".join(text.splitlines()[begin - 1 : found[name].end_lineno])
        parts.append(f"({Path(file).stem}-{name})=\n## {name}\n\n```python\n{code}\n```\n")
    return "\n".join(parts)


def addresses(repository: str, name: str) -> tuple[str, str]:
    """Where Colab and Binder open a notebook of a repository on GitHub."""
    path = f"notebooks/{name}.ipynb"
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/{path}"
    return colab, f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath={quote(path, safe='')}"


def badged(readme: str, repository: str) -> str:
    """The README with what opens its first notebook in Colab and in Binder."""
    colab, binder = addresses(repository, COURSE[0][1])
    line = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )
    title, _, rest = re.sub(BADGES, "", readme, flags=re.M).partition("\n\n")
    return f"{title}\n\n{line}\n\n{rest}"


def weights(name: str) -> str:
    """A shipped model as a script, for pages that are opened from a folder and can load nothing else: config and weights."""
    folder = ROOT / "data" / "checkpoints" / name
    config = json.loads((folder / "card.json").read_text())["config"]
    data = base64.b64encode((folder / "model.safetensors").read_bytes()).decode()
    return f"const MODEL = {json.dumps({'config': config, 'weights': data})};\n"


def scenes() -> str:
    """The world of the page of scenes, as a script: the words at each place of a caption, the colours of classes."""
    places = [[VOCABULARY.index(word) for word in words] for words in (BACKGROUNDS, SIZES, COLOURS, SHAPES)]
    colours = palette(torch.arange(1 + len(SHAPES)).reshape(-1, 1, 1)).flatten(1).tolist()
    return f"const PLACES = {places}, PALETTE = {colours};\n"


def thumbnail(name: str) -> Image.Image:
    """The figure that stands for a notebook."""
    drawn = [output for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells for output in figures(cell)]
    data = drawn[THUMBNAILS.get(name[:2], 0)].data["image/png"]
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    picture.thumbnail((640, 360))
    return picture


def card(file: Path) -> None:
    """The picture that a link to the site shows elsewhere, 1280 by 640."""
    figure = plt.figure(figsize=(12.8, 6.4), dpi=100, facecolor="white")
    figure.text(0.06, 0.82, "mtdiff", fontsize=52, weight="bold", color="#0b3d66")
    figure.text(0.06, 0.71, "A course and a library on multi-modal diffusion", fontsize=25, color="#1f2328")
    for corner, picture in (
        ((0.05, 0.36, 0.9, 0.26), Image.open(ROOT / "data" / "results" / "any-to-any.png")),
        ((0.05, 0.04, 0.28, 0.28), thumbnail("02_one_space_many_modalities")),
        ((0.36, 0.04, 0.28, 0.28), thumbnail("05_sampling_and_conditioning")),
        ((0.67, 0.04, 0.28, 0.28), thumbnail("06_image_transition")),
    ):
        axes = figure.add_axes(corner)
        axes.imshow(picture, cmap="gray")
        axes.axis("off")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


# ---- symbols ----


@functools.cache
def table() -> list[tuple[list[str], list[str]]]:
    """The rows of theory's tables of symbols: what each formula of the first cell begins with, and the cells."""
    theory = (FOLDER / "theory.md").read_text().partition("## 2.")[0]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in theory.splitlines() if line.startswith("| $")]
    formulas = [[found[1] or found[2] for found in MATH.finditer(row[0])] for row in rows]
    return [([key(f) for f in said if not f.startswith("\\sqrt")], row) for said, row in zip(formulas, rows, strict=True)]


def key(latex: str) -> str:
    """What a symbol is known by: with its first index, and without what it equals: `W_t` of `W_t^i`."""
    return re.match(r"(?:\\\w+ ?)*(?:{\w+}|\w)?(?:_\w)?", latex.strip())[0]


def anchor(symbol: str) -> str:
    """Its place on the page of symbols."""
    return "symbol-" + "-".join(re.findall(r"\w+", symbol.replace("_", "-")))


def used(latex: str) -> list[str]:
    """The symbols of the table in a formula."""
    every = [symbol for symbols, _ in table() for symbol in symbols]
    return [s for s in every if re.search(rf"(?<![A-Za-z\\]){re.escape(s)}(?![A-Za-z])", latex)]


def symbols() -> str:
    """The page of symbols: theory's table, each with the notebook that uses it first."""
    texts = {
        file: "\n".join(c.source for c in nbformat.read(FOLDER / f"{file}.ipynb", 4).cells if c.cell_type == "markdown")
        for _, file, _ in COURSE
    }
    first: dict[str, str] = {}
    for file, text in texts.items():
        for found in MATH.finditer(text):
            for symbol in used(found[1] or found[2]):
                first.setdefault(symbol, f"[{file[:2]}](notebooks/{file}.ipynb)")
    lines = []
    for keys, (symbol, meaning, code) in table():
        places = "".join(f'<span id="{anchor(k)}"></span>' for k in keys)
        where = ", ".join(dict.fromkeys(first[k] for k in keys if k in first)) or "[theory](notebooks/theory.md)"
        lines.append(f"| {places}{symbol} | {meaning} | {code} | {where} |\n")
    head = "| symbol | meaning | in the code | first used in |\n|---|---|---|---|\n"
    return (
        "# Symbols\n\nA formula with a dotted line under it leads here: it is the first on its page to use a symbol. "
        f"[Theory](notebooks/theory.md) has the definitions.\n\n{head}{''.join(lines)}"
    )


def link_symbols(app: Sphinx, tree: nodes.document, name: str) -> None:
    """Link the first formula in a page's text that uses a symbol to the page of symbols; every class is an object."""
    seen: set[str] = set()
    for node in [node for node in tree.findall(nodes.paragraph) if node.astext() == "Bases: object"]:
        node.parent.remove(node)
    linked = name.startswith("notebooks/") and name != "notebooks/theory"
    for node in list(tree.findall(nodes.math)) if linked else []:
        new = [symbol for symbol in used(node.astext()) if symbol not in seen]
        if new and not isinstance(node.parent, (nodes.title, nodes.reference)):
            seen.add(new[0])
            target = f"{app.builder.get_relative_uri(name, 'symbols')}#{anchor(new[0])}"
            node.replace_self(nodes.reference("", "", node.deepcopy(), refuri=target, internal=True, classes=["symbol"]))


# ---- Sphinx's extension ----


def picture(latex: str, display: bool = False) -> str:
    """A formula in the colour of the text. It keeps its size; what is too wide scrolls."""
    svg = formula(latex, display).replace('fill="black"', 'fill="currentColor"')
    place = re.search(r"vertical-align: [^\"]*", svg)
    svg = re.sub(r'style="[^"]*"', "", svg, count=1)
    return f'<div class="math">{svg}</div>' if display else f'<span class="math" style="{place[0]}">{svg}</span>'


def inline_math(writer, node: nodes.math) -> None:
    """A formula in a line."""
    writer.body.append(picture(node.astext()))
    raise nodes.SkipNode


def display_math(writer, node: nodes.math_block) -> None:
    """A formula in a line of its own."""
    writer.body.append(picture(node.astext(), display=True))
    raise nodes.SkipNode


def plain(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    """Read docstrings as the plain text that they are; `theory 2` leads to that section."""
    for k, line in enumerate(lines):
        lines[k] = re.sub(r"theory (\d)", r"`\g<0> <../notebooks/theory.html#theory-\1>`__", escaped(line, "``"))
    if what in {"data", "attribute"} and lines:
        lines[0] = f": {lines[0]}"  # napoleon takes what is before the first colon for a type


def only_found(app: Sphinx, env: BuildEnvironment) -> None:
    """Leave out of the list of modules what viewcode has no source of: it would link them all the same."""
    env._viewcode_modules = {name: found for name, found in env._viewcode_modules.items() if found}


def social(app: Sphinx, name: str, template: str, context: dict, tree: object) -> None:
    """Say what a link to a page shows elsewhere: where the site is has to be known for it."""
    if address := app.config.html_baseurl:
        said = {"title": context.get("title", "mtdiff"), "image": f"{address}_static/card.png", "type": "article"}
        lines = [f'<meta property="og:{what}" content="{html.escape(value)}">' for what, value in said.items()]
        large = '<meta name="twitter:card" content="summary_large_image">'
        context["metatags"] = "\n".join([context.get("metatags", ""), *lines, large])


def setup(app: Sphinx) -> dict:
    """What Sphinx asks an extension for."""
    app.add_html_math_renderer("picture", inline_renderers=(inline_math, None), block_renderers=(display_math, None))
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("env-updated", only_found, priority=900)
    app.connect("html-page-context", social)
    app.connect("doctree-resolved", link_symbols)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def settings(address: str = "") -> dict:
    """Sphinx's configuration."""
    return {
        "project": "mtdiff",
        "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "website"],
        "highlight_language": "sh",
        "html_theme": "furo",
        "html_title": "mtdiff",
        "html_static_path": ["_static"],
        "html_extra_path": ["_extra"],
        "html_css_files": ["site.css"],
        "html_baseurl": address,
        "html_math_renderer": "picture",
        "html_show_copyright": False,
        "html_copy_source": False,
        "myst_enable_extensions": ["dollarmath", "colon_fence"],
        "myst_heading_anchors": 4,
        "napoleon_custom_sections": ["Source"],
        "napoleon_numpy_docstring": False,
        "autodoc_typehints_format": "short",
        "python_use_unqualified_type_names": True,
        "toc_object_entries": False,
        "suppress_warnings": ["myst.header", "ref.python"],
    }


# ---- building and checking ----


class Page(HTMLParser):
    """The anchors of a page, where it leads and what it fetches."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag is the place of, and what it names."""
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif tag == "a" and name == "href":
                self.links.append(value)
            elif name == "src" or (tag == "link" and name == "href" and ("rel", "canonical") not in attrs):
                self.fetched.append(value)


def dead(site: Path) -> list[str]:
    """What is wrong with a site: links to a file or an anchor that is not there, and what is fetched from elsewhere."""
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    wrong = []
    for file, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlparse(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched and parts.scheme != "data":
                    wrong.append(f"{file.relative_to(site)} fetches {link}")
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            found = target in pages if parts.fragment else target.is_file()
            if not found or (parts.fragment and unquote(parts.fragment) not in pages[target].anchors):
                wrong.append(f"{file.relative_to(site)} leads to {link}")
    return wrong


def build(out: Path, repository: str = "", address: str = "", only: Collection[str] = ()) -> Path:
    """Write the site to a folder.

    Raises:
        RuntimeError: Sphinx warns, or a link is dead.
    """
    out = out.resolve()
    source = out.with_name(f"{out.name}-source")
    for folder in (out, source):
        shutil.rmtree(folder, ignore_errors=True)
    Source(source, repository, only).write()
    address = address and f"{address.rstrip('/')}/"
    warnings = io.StringIO()
    with docutils_namespace():  # what one site registers, another one may, too
        Sphinx(source, None, out, source / ".doctrees", "html", settings(address), status=None, warning=warnings).build()
    wrong = [*warnings.getvalue().splitlines(), *dead(out)]
    if wrong:
        raise RuntimeError("\n".join(wrong))
    return out


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="the folder of the site; what was there is removed")
    parser.add_argument("--repository", default="", help="OWNER/NAME on GitHub, for links to Colab and Binder")
    parser.add_argument("--address", default="", help="where the site will be")
    parser.add_argument("--only", nargs="*", default=[], help="notebooks such as 00_quickstart; default: all")
    parser.add_argument("--badges", default="", help="OWNER/NAME on GitHub, for the README and the notebooks")
    arguments = parser.parse_args()
    if arguments.badges:
        (ROOT / "README.md").write_text(badged(README, arguments.badges))
        for source in sources():
            source.write_text(reachable(source.read_text(), arguments.badges))
    if arguments.out:
        try:
            build(arguments.out, arguments.repository, arguments.address, arguments.only)
        except RuntimeError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
