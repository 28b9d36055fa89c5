"""That `tests/mutants.py` changes what it says and nothing else."""

import ast
import json

import pytest
from mutants import FILES, GOAL, PACKAGE, REASONS, ROOT, mutants

SOURCE = '''"""A docstring of 3 words."""


def f(x: Union[1, 2], *, n: int = 0, on=True) -> "1 + 1":
    """Returns 2 or so."""
    if not x[t] <= 0.5 and n is None:
        raise ValueError(f"{n + 1} is not 2")
    g(x, generator=n)
    return -x.sqrt() + torch.log(n)**2
'''
CHANGES = """
def f(x: Union[1, 2], *, n: int = «0 → 1», on=True) -> "1 + 1":
def f(x: Union[1, 2], *, n: int = 0, on=«True → False») -> "1 + 1":
if «not  → »x[t] <= 0.5 and n is None:
if not x[«t → t + 1»] <= 0.5 and n is None:
if not x[«t → t - 1»] <= 0.5 and n is None:
if not x[t] «<= → <» 0.5 and n is None:
if not x[t] <= «0.5 → 0.55» and n is None:
if not x[t] <= 0.5 «and → or» n is None:
if not x[t] <= 0.5 and n «is → is not» None:
g(x«, generator=n → »)
return «- → »x.sqrt() + torch.log(n)**2
return -x«.sqrt() → » + torch.log(n)**2
return -x.sqrt() «+ → -» torch.log(n)**2
return -x.sqrt() + «torch.log → »(n)**2
return -x.sqrt() + torch.log(n)«** → *»2
return -x.sqrt() + torch.log(n)**«2 → 3»
"""


def test_the_changes_are_these():
    found = list(mutants("f.py", SOURCE))
    assert [m.change for m in found] == CHANGES.strip().splitlines()
    assert {m.scope for m in found} == {("f", 4, 9)}


def test_a_change_is_made_where_it_says():
    """Undoing the edit in the changed line gives the line of the source, and all other lines are as they were."""
    for m in mutants("f.py", SOURCE):
        before, after = SOURCE.splitlines(), m.code.splitlines()
        assert [k for k, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b] == [m.line]
        start, old, new, end = m.change.replace("«", "\0").replace(" → ", "\0", 1).replace("»", "\0").split("\0")
        assert before[m.line - 1].strip() == start + old + end
        assert after[m.line - 1].strip() == start + new + end
        assert ast.dump(ast.parse(m.code)) != ast.dump(ast.parse(SOURCE))


def test_every_reason_fits_a_mutant_of_the_library():
    there = {m.key for file in FILES for m in mutants(file, (PACKAGE / file).read_text())}
    assert set(REASONS) <= there


def test_the_committed_result_is_as_good_as_it_should_be():
    path = ROOT / "data/results/mutants.json"
    if not path.is_file():
        pytest.skip("no result here: a wheel's tests have none")
    result = json.loads(path.read_text())
    assert all(1 - f["survived"] / f["mutants"] >= GOAL for f in result["files"].values())
    assert set(result["files"]) == set(FILES)
    assert result["mutants"] - result["mutants"] * result["rate"] == pytest.approx(len(result["survivors"]), abs=0.1)
