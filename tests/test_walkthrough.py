"""The paper walkthrough: no entry points at nothing."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "notebooks" / "walkthrough.md"
MARKS = ("(paper", "(second-hand", "(ours", "(suggested by the framework")


def rows(text):
    """Cells of every claim in the tables of a page."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in cells if len(row) == 6 and row[1].startswith("[")]


def link(cell):
    """Text and target of the link in a cell."""
    found = re.fullmatch(r"\[(.+?)\]\(([^)]+)\)", cell)
    assert found, f"expected one link, got {cell!r}"
    return found.groups()


def slug(heading):
    """The anchor that a Markdown viewer gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


CLAIMS = rows(PAGE.read_text())
every_claim = pytest.mark.parametrize("row", CLAIMS, ids=[re.sub(r"\W+", "-", row[0])[:50] for row in CLAIMS])


def test_the_page_covers_the_theory():
    assert len(CLAIMS) >= 20
    assert {link(row[1])[0] for row in CLAIMS} >= {"theory 1", "theory 2", "theory 3", "theory 4", "theory 6", "theory 7"}


def test_the_theory_page_has_lines_that_an_editor_shows():
    lines = (PAGE.parent / "theory.md").read_text().splitlines()
    assert max(map(len, lines)) <= 140


@every_claim
def test_a_claim_says_whose_it_is_and_has_a_verdict(row):
    assert any(mark in row[0] for mark in MARKS), row[0]
    assert row[5]


@every_claim
def test_its_derivation_is_a_section_of_the_theory_page(row):
    text, target = link(row[1])
    file, anchor = target.split("#")
    headings = re.findall(r"^## (.+)$", (PAGE.parent / file).read_text(), re.M)
    assert anchor in [slug(heading) for heading in headings]
    assert anchor.startswith(text.removeprefix("theory "))


@every_claim
def test_its_function_is_in_the_linked_module(row):
    text, target = link(row[2])
    path = (PAGE.parent / target).resolve().relative_to(ROOT).with_suffix("")
    found = importlib.import_module(".".join(path.parts))
    for name in text.strip("`").split("."):
        found = getattr(found, name)
    assert callable(found)


@every_claim
def test_its_test_is_in_the_linked_file(row):
    text, target = link(row[3])
    tree = ast.parse((PAGE.parent / target).read_text())
    assert text.strip("`") in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@every_claim
def test_its_notebook_section_exists(row):
    text, target = link(row[4])
    number, section = re.fullmatch(r"(\d\d) §(\d+)", text).groups()
    assert target.startswith(number)
    assert (PAGE.parent / target).is_file()
    source = (PAGE.parent / target).with_suffix(".py").read_text()
    assert re.search(rf"^# ## {section} · ", source, re.M), f"{target} has no section {section}"


def test_the_readmes_claims_are_rows_of_the_page():
    def by_file_name(row):
        return [re.sub(r"\]\((?!http)[^)]*?([^/)]+)\)", r"](\1)", cell) for cell in row]

    readme = [by_file_name(row) for row in rows((ROOT / "README.md").read_text())]
    assert len(readme) >= 5
    assert all(row in [by_file_name(claim) for claim in CLAIMS] for row in readme)


def test_an_entry_that_points_at_nothing_is_noticed():
    good = CLAIMS[0]
    with pytest.raises(AssertionError):
        test_its_test_is_in_the_linked_file([*good[:3], "[`test_of_nothing`](../tests/test_process.py)", *good[4:]])
    with pytest.raises(AttributeError):
        test_its_function_is_in_the_linked_module([*good[:2], "[`ForwardProcess.nothing`](../mtdiff/process.py)", *good[3:]])
    with pytest.raises(AssertionError):
        test_its_notebook_section_exists([*good[:4], "[02 §99](02_one_space_many_modalities.ipynb)", good[5]])
    with pytest.raises(AssertionError):
        test_its_derivation_is_a_section_of_the_theory_page([good[0], "[theory 9](theory.md#9-nothing)", *good[2:]])


# ---- what the course says of itself ----

README = (ROOT / "README.md").read_text()
COURSE = re.findall(r"^\| \[(\d\d [^\]]+)\]\(notebooks/(\S+)\.ipynb\) \| (.+) \| (.+) \|$", README, re.M)
SOURCES = {path.stem[:2]: path for path in sorted(PAGE.parent.glob("[0-9][0-9]_*.py"))}
TALKING = [*SOURCES.values(), *sorted(PAGE.parent.glob("*.md")), ROOT / "README.md"]


def sections(number):
    """The numbers of a notebook's sections; none for a notebook that does not exist."""
    return re.findall(r"^# ## (\d+) · ", SOURCES[number].read_text(), re.M) if number in SOURCES else []


def numbers(text):
    """The notebooks that a text names, one or several: "notebook 02", "notebooks 02 (codes), 05 and 07 to 09"."""
    several = r"[Nn]otebooks (\d\d\b(?:(?: \([^)]*\))?(?:,| and| to| or)+ \d\d\b)*)"
    listed = [re.sub(r"\([^)]*\)", "", run) for run in re.findall(several, text)]
    return [*re.findall(r"[Nn]otebook (\d\d)\b", text), *re.findall(r"\b\d\d\b", " ".join(listed))]


def wrong_references(text, number=None):
    """What a text, of the notebook of this number, says of notebooks, sections and tests that are not there."""
    text = re.sub(r"\s*\n#? ?", "\n", f"\n{text}").replace("**", "")
    titles = [title.casefold() for title, *_ in COURSE]
    rows = re.findall(r"^\| (\d\d [a-z][^|]*) \|", text, re.M | re.I)
    wrong = [name for row in rows for name in re.split(r", (?=\d\d )", row) if name.casefold() not in titles]
    text = text.replace("\n", " ")
    wrong += [f"notebook {n}" for n in numbers(text) if n not in SOURCES]
    linked = re.findall(r"\[(\d\d) §(\d+)\]\((?:[^)]*/)?(\d\d)_", text)
    wrong += [f"{n} §{k}, linked to {file}" for n, k, file in linked if n != file or k not in sections(n)]
    said = [(n, k) for k, n in re.findall(r"[Ss]ection (\d+) (?:of|in) notebook (\d\d)", text)]
    said += re.findall(r"[Nn]otebook (\d\d),? section (\d+)", text)
    if number:
        own = re.sub(r"[Nn]otebook \d\d,? section \d+|[Ss]ection \d+ (?:of|in) (?:notebook|\[)", "", text)
        said += [(number, k) for k in re.findall(r"\b[Ss]ection (\d+)", own)]
    wrong += [f"section {k} of notebook {n}" for n, k in said if k not in sections(n)]
    for name, file in re.findall(r"\[`(test_\w+)`\]\((?:[^)]*/)?(test_\w+\.py)\)", text):
        path = ROOT / "tests" / file
        wrong += [name] if not path.is_file() or f"\ndef {name}(" not in path.read_text() else []
    return wrong + [path for path in re.findall(r"\btests/\w+\.py", text) if not (ROOT / path).is_file()]


@pytest.mark.parametrize("page", TALKING, ids=lambda page: page.stem)
def test_notebooks_sections_and_tests_that_are_named_exist(page):
    assert wrong_references(page.read_text(), page.stem[:2] if page.suffix == ".py" else None) == []


@pytest.mark.parametrize(
    "text",
    [
        "of notebooks 01 to 99",
        "# of notebooks 02 (codes),\n# 05 (rules) and 99 (more)",
        "# | 08 labels | how? |",
        "# | **06 image transition**, 07 masks | what? |",
        "[02 §99](02_one_space_many_modalities.ipynb)",
        "[02 §3](03_the_multimodal_bound.ipynb)",
        "# (notebook 05,\n# section 30)",
        "section 30 of notebook 05",
        "see section 30",
        "[`test_of_nothing`](../tests/test_process.py)",
        "[`test_a_bound_cannot_be_changed`](../tests/test_process.py)",
        "`tests/test_nothing.py`",
    ],
)
def test_a_wrong_reference_is_noticed(text):
    assert len(wrong_references(text, "02")) == 1


def test_the_first_notebook_lists_the_course_as_the_readme_does_and_the_files_are_there():
    assert [file for _, file, *_ in COURSE] == [path.stem for path in SOURCES.values()]
    assert all(path.with_suffix(".ipynb").is_file() for path in SOURCES.values())
    assert all(state.startswith("ready") for *_, state in COURSE)
    listed = re.findall(r"^# \| \**(\d\d [^|*]+)\** \| (.+) \| (.+) \|$", SOURCES["00"].read_text(), re.M)
    first, *others = [(title, question, state) for title, _, question, state in COURSE]
    assert listed == [(*first[:2], "you are here"), *others]
