"""What a newcomer relies on: the pins, the wheel, the README."""

import ast
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import mtdiff
from mtdiff.experiments import any_to_any, dense
from mtdiff.experiments.report import bounds, guidances, heads, markdown

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MEASURED = (ROOT / "notebooks" / "measured.md").read_text()


def requirement_names(text):
    """Names of requirements, one per line, normalised."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {re.split(r"[\[<>=!; ]", line)[0].lower().replace("_", "-") for line in lines if line}


def declared():
    """Direct requirements of pyproject.toml: the core's and all extras'."""
    block = (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0]
    return {re.split(r"[\[<>=]", name)[0] for name in re.findall(r'^    "([a-z][^"]*>=[^"]*)",$', block, re.M)}


def test_every_direct_requirement_is_pinned():
    assert len(declared()) > 15
    assert declared() <= requirement_names((ROOT / "constraints.txt").read_text())


def test_pins_are_exact_and_name_no_address():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r'[a-z0-9.-]+==[A-Za-z0-9.]+(; python_version (<|>=) "3\.11")?', line), line


def test_environment_yml_has_the_same_pins_through_pip():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert {re.split("[=<>]", entry)[0] for entry in conda} == {"python", "pip"}
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["-c constraints.txt", "-e .[test]"]


def test_the_pip_section_of_environment_yml_resolves():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    words = [word for line in pip for word in line.split()]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "-q", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_shipped_models_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "mtdiff/checkpoints/image-label/digits/model.safetensors" in names
    assert not [name for name in names if name.startswith(("tests", "notebooks", "data"))]


def test_load_works_from_an_installed_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import mtdiff as mt; print(mt.__file__); print(mt.sample(mt.load('image-label/digits'), 2, steps=2)['label'].shape)"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, shape = done.stdout.split("\n")[:2]
    assert Path(where).is_relative_to(tmp_path)
    assert shape == "torch.Size([2])"


def test_a_wheel_says_where_the_course_is(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mtdiff", "course", "students", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = "mtdiff: error: the notebooks do not come with the package: run this in a checkout of mtdiff's repository\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_importing_the_core_pulls_in_neither_torchvision_nor_the_notebook_packages():
    names = ("torchvision", "matplotlib", "sklearn", "IPython", "nbformat", "diffusers")
    code = f"import sys, mtdiff.cli.train; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["threes"]["label"].tolist() == [3] * 16
    assert names["loss"].total.item() > 0
    assert (names["named"] == names["test"].values["label"]).double().mean() > 0.9
    assert (names["train"].values["label"][names["alike"][0]] == names["test"].values["label"][0]).double().mean() > 0.5


def test_the_readme_and_the_makefile_agree():
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    assert {"course", "test", "lab", "notebooks", "lint", "help"} <= targets
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.M)) <= targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def measured(setting, *variants):
    """Result files of some variants, in this order."""
    return [json.loads((ROOT / "data" / "results" / f"{setting}-{variant}.json").read_text()) for variant in variants]


ALONE = [f"{given}-to-{drawn}" for drawn, given in any_to_any.SPECIALISTS]
REPRESENTED = ["image-only", "predicted", "told", "lifted", "own-channels", "caption", "features", "segments"]


def test_the_tables_are_the_measured_ones():
    joint = ("fade-in", "from-zero", "constant", "own-channels", "image-only", "unshared", "conditional")
    digits = measured("image-label-digits", *joint)
    assert markdown(digits) in MEASURED
    assert bounds(digits) in MEASURED
    assert guidances(measured("image-label-digits", "fade-in", "conditional")) in MEASURED
    assert heads(measured("image-label-digits", "fade-in", "noisy-classifier", "classifier")) in MEASURED
    assert heads(measured("image-label-digits", "labels-10", "classifier-10", "labels-1", "classifier-1")) in MEASURED
    for setting, *variants in (
        ("image-label-digits", "fade-in", "learned", "generator", "token", "light", "heavy", "labels-10", "labels-1"),
        ("image-label-shapes16", "fade-in", "classifier"),
        ("image-label-shapes16", "shipped"),
        ("image-label-shapes32", "fade-in"),
        ("image-representation-shapes16", *REPRESENTED, "segments-told", "random"),
        ("image-representation-shapes32", "lifted", "image-only"),
        ("image-transition-shapes16", "transition", "conditional", "regression", "sdedit"),
        ("image-transition-shapes32", "transition"),
        ("masked-image-shapes16", "masked", "plain", "augment", "own-channels"),
        ("masked-image-shapes32", "masked"),
        ("restoration-shapes16", "told", "transition"),
        ("imagenet-imagenette32", *(f"{v}-long" for v in ("plain", "label", "masked", "classifier", "noisy-classifier"))),
        ("imagenet-imagenette32", "plain-gpu", "label-gpu", "masked-gpu", "conditional-gpu"),
        ("multimodal-vae-polydigits", "mopoe-diffusion", "mopoe", "product", "mixture", "mt"),
        ("any-to-any", "shapes32-shared", "scenes32-shared", "shapes16-shipped"),
        ("any-to-any-shapes16", "shared", "own-channels", "unshared", "missing-50", "missing-80", *ALONE),
        ("dense-shapes16", "generalist", "tuned", *dense.TASKS, *(f"{task}-long" for task in dense.TASKS), "generator"),
    ):
        assert markdown(measured(setting, *variants)) in MEASURED, setting
    assert heads(measured("image-label-shapes16", "fade-in", "classifier")) in MEASURED
    photographs = measured("imagenet-imagenette32", "plain", "label", "masked", "classifier")
    assert markdown([*photographs, *measured("imagenet-tiny-imagenet32", "box")]) in MEASURED
    planted = [result for share in (60, 80) for result in measured(f"image-label-planted{share}", "fade-in")]
    assert markdown(planted) in MEASURED


def test_the_table_of_solvers_is_the_measured_one():
    result = json.loads((ROOT / "data" / "results" / "benchmark-samplers.json").read_text())
    for name, row in result["samplers"].items():
        found = [row[count]["frechet_pixels"] if count in row else None for count in ("5", "10", "20", "50", "100", "250")]
        cells = [f"{entry['mean']:.3f} ± {entry['stderr']:.3f}" if entry else "-" for entry in found]
        assert f"| {name} | {' | '.join(cells)} |" in MEASURED


def test_the_readme_quotes_the_mutants_as_measured():
    result = json.loads((ROOT / "data" / "results" / "mutants.json").read_text())
    assert f"{result['mutants']:,} times" in README
    assert f"notice {100 * result['rate']:.1f}% of the changes" in README
    sentence = README[README.index("python tests/mutants.py") :].partition("times")[0]
    parts = [file.partition("/") for file in result["files"]]
    rooms = {f"{first}/" if rest else first.removesuffix(".py") for first, _, rest in parts}
    assert rooms <= set(re.findall(r"`([a-z/]+)`", sentence))


def test_every_theory_section_that_the_code_names_is_on_the_page():
    sections = set(re.findall(r"^## (\d)\.", (ROOT / "notebooks" / "theory.md").read_text(), re.M))
    named = {n for file in (ROOT / "mtdiff").rglob("*.py") for n in re.findall(r"theory (\d)", file.read_text())}
    assert named
    assert named <= sections


def test_the_theory_page_names_code_and_tests_that_exist():
    page = (ROOT / "notebooks" / "theory.md").read_text()
    source = "\n".join(file.read_text() for file in (ROOT / "mtdiff").rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_.]+?)(?:=|\([^`]*)?`", page):
        assert (ROOT / name).exists() or name.startswith("mtdiff") or re.search(rf"\b{name.split('.')[-1]}\b", source), name


def test_links_lead_to_files_that_exist():
    for page, folder in ((README, ROOT), (MEASURED, ROOT / "notebooks")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page):
            assert (folder / link).exists(), link


@pytest.mark.parametrize(
    ("library", "code", "what"),
    [
        ("matplotlib", "import mtdiff.plots", "mtdiff.plots needs matplotlib"),
        ("ipywidgets", "import mtdiff.widgets", "mtdiff.widgets needs ipywidgets"),
        ("nbclient", "import mtdiff.course", "the course needs nbclient"),
        ("sklearn", "import mtdiff; mtdiff.datasets.digits()", "digits needs sklearn"),
        (
            "skimage",
            "from mtdiff.metrics import ssim; import torch; ssim(*[torch.zeros(1, 1, 8, 8)] * 2)",
            "ssim needs skimage",
        ),
    ],
)
def test_what_only_the_course_needs_is_asked_for_in_one_line(library, code, what):
    """The library is hidden; the rest of mtdiff works without it."""
    code = f"import sys, mtdiff.cli, mtdiff.training; sys.modules['{library}'] = None\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == f"mtdiff.optional.NotInstalled: {what}: pip install 'mtdiff[notebooks]'"


def test_public_names_are_listed_alike_for_readers_type_checkers_and_whoever_asks():
    tree = ast.parse((ROOT / "mtdiff" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {node.module: {alias.name for alias in node.names} for node in block.body}
    assert imports.pop("mtdiff") == {"datasets", "exact"}
    assert imports == {home: set(names.split()) for home, names in mtdiff.HOMES.items()}
    assert set(mtdiff.__all__) == {"datasets", "exact"}.union(*imports.values())
