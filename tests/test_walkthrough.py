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
    assert {link(row[1])[0] for row in CLAIMS} >= {"theory 1", "theory 2", "theory 3", "theory 4"}


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
