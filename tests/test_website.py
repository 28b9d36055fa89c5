"""The site: every page is there, no link is dead, nothing is fetched, and what publishes it calls what there is."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
import yaml

import mtdiff as mt
from notebooks import figures, setup

pytest.importorskip("furo", reason="needs mtdiff[site]")
import website

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [file for _, file, _ in website.COURSE]
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # Sphinx's own
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, as it would be published; a dead link or a warning raises."""
    return website.build(tmp_path_factory.mktemp("site") / "site", "someone/course", "https://example.org/course")


class Shown(HTMLParser):
    """What a page shows outside of code, and the attributes of its pictures."""

    def __init__(self, page):
        super().__init__()
        self.text, self.images, self.inside = "", [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in {"pre", "code", "script", "style", "title"}:
            self.inside.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        self.text += "" if self.inside else data


def article(page):
    """The part of a page that is not the theme's."""
    return page.read_text().partition('<article role="main"')[2].partition("</article>")[0]


def test_every_page_of_the_repository_is_there(site):
    pages = {page.relative_to(site).with_suffix("").as_posix() for page in site.rglob("*.html")}
    assert pages >= {name for group in website.PAGES.values() for name in group}
    listed = {file.stem for file in (ROOT / "notebooks").glob("*.md")}
    assert {f"notebooks/{name}" for name in listed} <= pages


@every_notebook
def test_a_notebook_shows_its_stored_outputs(site, name):
    page, notebook = article(site / "notebooks" / f"{name}.html"), nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    shown, drawn = Shown(page), [output for cell in notebook.cells for output in figures(cell)]
    alts = [" ".join(output.metadata["image/png"]["alt"].split()) for output in drawn]
    assert [image["alt"] for image in shown.images] == alts
    assert not re.search(r".{0,30}(?:\$|\\[a-zA-Z]).{0,30}", shown.text)  # what is left of a formula
    assert page.count('<svg role="img"') > 5
    solutions = [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]
    assert page.count("<details><summary>Solution</summary>") == page.count("</details>") == len(solutions)
    folded = "".join(re.findall(r"<details>.*?</details>", page, re.S))
    assert page.count("Solved.</b>") == folded.count("Solved.</b>") == len(solutions)


def test_slides_are_linked_from_their_notebook_and_the_teachers_guide_and_lead_to_pages_of_the_site(site):
    guide = re.findall(r'href="\.\./slides/(\w+)\.html"', article(site / "notebooks" / "teaching.html"))
    assert guide == NOTEBOOKS
    led = []
    for name in NOTEBOOKS:
        assert f'href="../slides/{name}.html"' in article(site / "notebooks" / f"{name}.html")
        slides = (site / "slides" / f"{name}.html").read_text()
        assert slides.count("<section>") >= 10
        led += re.findall(r'href="\.\./notebooks/(\w+)\.html', slides)
    assert {"theory", "measured", "walkthrough", "05_sampling_and_conditioning"} <= set(led)


def test_a_link_of_a_slide_may_begin_in_one_line_and_end_in_the_next(tmp_path, monkeypatch):
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# One\n\n[04\n§8](04_how_tight.ipynb)")])
    page.cells[0].metadata["slideshow"] = {"slide_type": "slide"}
    monkeypatch.setattr(website.nbformat, "read", lambda *_: page)
    assert '<a href="../notebooks/04_how_tight.html">04\n§8</a>' in website.Source(tmp_path).slides("00_quickstart")


def test_a_section_may_be_named_in_two_lines(tmp_path):
    (source := website.Source(tmp_path)).page("notebooks/x.md", "[04\n§8](04_how_tight.ipynb)")
    assert (tmp_path / "notebooks" / "x.md").read_text() == "[04\n§8](#04_how_tight-8)"
    assert not source.files


def test_the_map_shows_every_notebook_by_a_figure_of_its_own(site):
    page = article(site / "index.html")
    cards = re.findall(r'<a class="card" href="notebooks/(\w+)\.html"><img src="(_static/map/\w+\.png)"', page)
    assert [name for name, _ in cards] == NOTEBOOKS
    assert len({(site / picture).read_bytes() for _, picture in cards}) == len(NOTEBOOKS)


def test_the_first_formula_of_a_page_that_uses_a_symbol_leads_to_it(site):
    page = article(site / "notebooks" / "02_one_space_many_modalities.html")
    links = re.findall(r'href="\.\./symbols\.html#(symbol-[\w-]+)"', page)
    assert len(links) == len(set(links))
    assert {"symbol-W-t", "symbol-w-t", "symbol-E-i", "symbol-z-t", "symbol-bar-alpha-t"} <= set(links)
    assert "symbols.html#" not in article(site / "notebooks" / "theory.html")


def test_the_page_of_symbols_is_theorys_table(site):
    page = (site / "symbols.html").read_text()
    symbols = [symbol for row, _ in website.table() for symbol in row]
    assert {"x_i", "X", "W_t", r"\bar\alpha_t", r"\hat m_t", r"\mathrm{SNR}_t"} <= set(symbols)
    assert all(f'id="{website.anchor(symbol)}"' in page for symbol in symbols)
    assert 'href="notebooks/00_quickstart.html"' in article(site / "symbols.html")


@pytest.mark.parametrize(
    ("latex", "symbols"),
    [
        (r"w_t^i E_i(x_i)", {"w_t", "E_i", "x_i"}),
        (r"\alpha_t", set()),
        (r"\sqrt{\bar\alpha_t}", {r"\bar\alpha_t"}),
        (r"\mathrm{SNR}_t", {r"\mathrm{SNR}_t"}),
        (r"\mathrm{Zx_i}", set()),
    ],
)
def test_symbols_are_told_from_what_looks_like_them(latex, symbols):
    assert set(website.used(latex)) == symbols


def test_claims_lead_to_docstrings_tests_and_sections(site):
    page = (site / "notebooks" / "walkthrough.html").read_text()
    assert 'href="../api/process.html#mtdiff.process.ForwardProcess.transition"' in page
    assert re.search(r'href="\.\./tests/test_process\.html#test-process-test-transition-is-the-papers-kernel"', page)
    assert re.search(r'href="02_one_space_many_modalities\.html#one-space-many-modalities-3"', page)
    assert "{py:obj}" not in page
    claims = re.findall(r"\]\(\.\./mtdiff/", (ROOT / "notebooks" / "walkthrough.md").read_text())
    assert len(re.findall(r'href="\.\./api/\w+\.html#mtdiff', page)) == len(claims)
    assert "test_transition_is_the_papers_kernel" in (site / "tests" / "test_process.html").read_text()


def test_docstrings_are_shown_as_they_are_written(site):
    page = Shown((site / "api" / "process.html").read_text()).text
    assert "with cumulative weights W_t^i" in page
    assert "{name: E_i(x_i) (B, *Z)}" in page
    assert 'href="../notebooks/theory.html#theory-2"' in (site / "api" / "process.html").read_text()


def test_public_names_lead_to_their_docstrings(site):
    page = (site / "api" / "index.html").read_text()
    for name in set(mt.__all__) - {"MISSING", "datasets", "exact"}:
        assert re.search(rf'href="\w+\.html#mtdiff\.[\w.]*\.{name}"', page), name


def test_search_finds_text_of_notebooks_and_functions(site):
    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").removesuffix(")"))
    found = index["terms"]["posterior"]
    assert "notebooks/02_one_space_many_modalities" in [index["docnames"][k] for k in found]
    assert "mtdiff.process.ForwardProcess" in index["objects"]


def test_a_published_page_says_where_it_can_be_run_and_has_a_card(site):
    page = (site / "notebooks" / "00_quickstart.html").read_text()
    assert "https://colab.research.google.com/github/someone/course/blob/main/notebooks/00_quickstart.ipynb" in page
    assert "https://mybinder.org/v2/gh/someone/course/HEAD?labpath=notebooks%2F00_quickstart.ipynb" in page
    assert setup("someone/course") in html.unescape(re.sub(r"<[^>]*>", "", page))
    assert '<meta property="og:image" content="https://example.org/course/_static/card.png">' in page
    assert (site / "_static" / "card.png").stat().st_size > 10_000


def test_a_notebook_that_gets_the_course_by_itself_is_not_told_how(tmp_path, monkeypatch):
    source, page = website.Source(tmp_path, "someone/course"), tmp_path / "00_quickstart.py"
    monkeypatch.setattr(website, "FOLDER", tmp_path)
    page.write_text("# %%\n1\n")
    assert setup("someone/course") in source.ways("00_quickstart")
    page.write_text(website.reachable(page.read_text(), "someone/course"))
    assert "pip" not in source.ways("00_quickstart")
    assert "colab.research.google.com" in source.ways("00_quickstart")


def test_a_dead_link_a_dead_anchor_and_what_is_fetched_elsewhere_are_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">x</a><a href="https://example.org">x</a><p id="top"><a href="#top">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><img src="c.png"><img src="data:,x"><a href="a.html#there">x</a>')
    (tmp_path / "d.html").write_text('<script src="https://example.org/x.js"></script><a href="e%20f.html">x</a>')
    assert website.dead(tmp_path) == [
        "b.html leads to a.html#there",
        "b.html leads to c.png",
        "d.html leads to e%20f.html",
        "d.html fetches https://example.org/x.js",
    ]


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("[a page](nowhere.md)", r"index\.md leads to nowhere\.md, which is not there"),
        ("[a section](#nothing)", r"WARNING: .*nothing"),
        ("<a href='nowhere.html'>a page</a>", r"index\.html leads to nowhere\.html"),
    ],
)
def test_a_link_that_leads_nowhere_stops_the_site(link, said, tmp_path, monkeypatch):
    monkeypatch.setattr(website, "PAGES", {})
    monkeypatch.setattr(website, "symbols", lambda: "---\norphan: true\n---\n# Symbols\n")
    monkeypatch.setattr(website.Source, "api", lambda self: None)
    monkeypatch.setattr(website.Source, "map", lambda self: f"# Title\n\n{link}\n")
    with pytest.raises(RuntimeError, match=said):
        website.build(tmp_path / "site", only=["none"])


def test_badges_are_written_once_and_the_site_leaves_them_out():
    once = website.badged(website.README, "someone/course")
    assert "https://mybinder.org/v2/gh/someone/course/HEAD" in once
    again = website.badged(once, "other/name")
    assert "someone" not in again
    assert again.replace("other/name", "someone/course") == once
    bare, also = (re.sub(website.BADGES, "", text, flags=re.M) for text in (once, website.README))
    assert bare == also
    assert "colab" not in bare


def commands(step):
    """The lines of a shell script that call make."""
    return re.findall(r"^make .*", step, re.M)


def test_workflows_publish_what_make_site_writes():
    github = yaml.safe_load((ROOT / ".github" / "workflows" / "site.yml").read_text())
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
    steps = github["jobs"]["build"]["steps"]
    (uploaded,) = (step["with"]["path"] for step in steps if "upload-pages" in step.get("uses", ""))
    assert uploaded == "build/site"
    assert github["jobs"]["deploy"]["needs"] == "build"
    assert gitlab["pages"]["script"][-1] == "mv build/site public"
    assert gitlab["pages"]["artifacts"]["paths"] == ["public"]
    calls = [call for step in [s.get("run", "") for s in steps] + gitlab["pages"]["script"] for call in commands(step)]
    assert len(calls) == 2
    for call in calls:
        places = {
            "GITHUB_REPOSITORY": "a/b",
            "GITHUB_REPOSITORY_OWNER": "a",
            "CI_PAGES_URL": "https://c.d",
            "PATH": "/usr/bin:/bin",
        }
        dry = subprocess.run(["bash", "-c", f"{call} -n"], cwd=ROOT, env=places, capture_output=True, text=True, check=True)
        assert 'tests/website.py build/site --repository "' in dry.stdout
        assert '--address "https://' in dry.stdout


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md")), ids=lambda file: file.stem)
def test_an_issue_template_says_what_it_is_for(file):
    head, text = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", file.read_text(), re.S).groups()
    assert set(yaml.safe_load(head)) == {"name", "about"}
    assert "**" in text
