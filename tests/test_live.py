"""The pages on which a model runs: its numbers are the library's, in node and in a browser that opens them from a folder."""

import base64
import html
import json
import re
import shutil
import subprocess

import browser
import pytest
import torch
from browser import CHROMIUM, OPTIONS
from helpers import generator
from safetensors.torch import save

import mtdiff as mt
from mtdiff.experiments import any_to_any

pytest.importorskip("furo", reason="needs mtdiff[site]")
import website

NAME = "image-label/digits"
ANY = "any-to-any/shapes16"
NETWORK = (website.LIVE / "network.js").read_text()
SCENES = NETWORK + (website.LIVE / "any.js").read_text()
CLOSE = 1e-4
CHAINS = [(12, 3, 1.0), (5, None, 1.0), (8, 7, 3.0)]
"""Steps, label and guidance."""
ROUTES = [
    ([], 1.0, "ddim"),
    (["caption"], 2.0, "ddpm"),
    (["segmentation", "label"], 1.0, "ddim"),
    (["image", "depth"], 3.0, "ddpm"),
]
"""What is given, guidance and sampler."""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome, to open the page")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's script")
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::DeprecationWarning")  # Sphinx's own


def node(script, folder):
    """What a script reports."""
    (folder / "script.js").write_text(f"const report = (x) => console.log(JSON.stringify(x));\n{script}")
    out = subprocess.run(["node", folder / "script.js"], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def opened(page, folder):
    """A page as Chromium has it when all of its timers are done."""
    options = [*OPTIONS, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom"]
    command = [CHROMIUM, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def chromium(script, folder):
    """What a script reports, in a page that is opened from a folder."""
    report = "const report = (x) => { document.body.textContent = JSON.stringify(x); };"
    (folder / "page.html").write_text(f"<!doctype html><body><script>{report}\n{script}</script></body>")
    return json.loads(html.unescape(re.search(r"<body>(.*)</body>", opened(folder / "page.html", folder), re.S)[1]))


ENGINES = pytest.mark.parametrize(
    "engine", [pytest.param(node, marks=needs_node), pytest.param(chromium, marks=needs_chromium)]
)


def scripts(name=NAME, script=NETWORK):
    """What a page has of a model, and the script that runs it."""
    return website.weights(name) + script


@ENGINES
def test_a_chain_in_javascript_is_the_librarys(engine, tmp_path):
    model = mt.load(NAME)
    z = torch.randn(1, *model.space, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    run = f"""
    const plain = (x) => (typeof x === "number" ? x : [...x]);
    const names = ["t", "z", "aggregate", "image", "chances"];
    const all = (frame) => Object.fromEntries(names.map((name) => [name, plain(frame[name])]));
    const model = new Model(MODEL), z = Float64Array.from({z.flatten().tolist()});
    report({json.dumps(CHAINS)}.map(([steps, label, scale]) => [...model.path(z, steps, label, scale)].map(all)));
    """
    for found, (steps, label, scale) in zip(engine(scripts() + run, tmp_path), CHAINS, strict=True):
        given = {} if label is None else {"label": torch.tensor([label])}
        start = {"start": (model.process.steps, z), "given": given, "rule": "conditioned", "guidance": scale}
        path = list(mt.sample_path(model, 1, **start, sampler="ddim", steps=steps))
        for mine, (t, z_t, prediction) in zip(found, path, strict=True):
            with torch.no_grad():
                alone = model.predict(z_t, t)
            expected = {"z": z_t, "aggregate": prediction.aggregate, "image": prediction.law["image"].mean}
            expected["chances"] = alone.law["label"].probs
            assert mine["t"] == t
            for name, value in expected.items():
                assert (torch.tensor(mine[name]) - value.flatten()).abs().max() < CLOSE, (name, t)
        assert torch.tensor(found[-1]["image"]).std() > 0.5, "a digit, not a grey square"


@ENGINES
def test_any_to_any_in_javascript_is_the_librarys(engine, tmp_path):
    """What every head says at every step, whatever is given, with guidance and with noise on the way."""
    model, steps, scene = mt.load(ANY), 8, any_to_any.world("shapes16", "test")[4:5]
    sources = [generator(3), *[generator(5)] * steps]
    z, *noise = (torch.randn(1, *model.space, generator=source, dtype=torch.float64) for source in sources)
    given = [{name: scene[name] for name in names} for names, _, _ in ROUTES]
    lists = [{name: value.flatten().tolist() for name, value in values.items()} for values in given]
    asked = [[each, scale, sampler] for each, (_, scale, sampler) in zip(lists, ROUTES, strict=True)]
    run = f"""
    const model = new Scenes(MODEL), z = Float64Array.from({z.flatten().tolist()});
    const noise = {[each.flatten().tolist() for each in noise]};
    const plain = ({{ t, z, aggregate, said }}) => [t, Object.fromEntries(
      Object.entries({{ ...said, z, aggregate }}).map(([name, numbers]) => [name, [...numbers]]))];
    report({json.dumps(asked)}.map(([given, guidance, sampler]) => {{
      const left = [...noise];
      return [...model.path(z, {steps}, given, guidance, sampler === "ddpm" ? () => left.shift() : null)].map(plain);
    }}));
    """
    found = engine(scripts(ANY, SCENES) + run, tmp_path)
    for frames, values, (names, scale, sampler) in zip(found, given, ROUTES, strict=True):
        start = {"start": (model.process.steps, z), "given": values, "guidance": scale, "generator": generator(5)}
        path = mt.sample_path(model, 1, **start, sampler=sampler, steps=steps)
        for (t, mine), (at, z_t, prediction) in zip(frames, path, strict=True):
            law = prediction.law
            expected = {"z": z_t, "aggregate": prediction.aggregate, "image": law["image"].mean, "depth": law["depth"].mean}
            expected |= {"segmentation": law["segmentation"].probs, "label": law["label"].probs}
            expected["caption"] = law["caption"].probs.movedim(1, -1)
            assert t == at
            assert mine.keys() == expected.keys()
            for name, value in expected.items():
                assert (torch.tensor(mine[name]) - value.flatten()).abs().max() < 1e-3, (names, name, t)
        assert "image" in names or torch.tensor(mine["image"]).std() > 0.1, "a scene, not a grey square"


@needs_node
@pytest.mark.parametrize("name", ["image-label/shapes16", "masked-image/shapes16"])
def test_a_model_that_is_not_any_to_any_is_refused(name, tmp_path):
    run = "try { report(new Scenes(MODEL).T); } catch (error) { report(error.message); }"
    said = "only a U-Net can be run here whose aggregate is what its heads say of pictures, maps and words"
    assert node(scripts(name, SCENES) + run, tmp_path) == said


@needs_node
def test_the_steps_of_a_chain_are_the_librarys(tmp_path):
    run = "const model = new Model(MODEL); report(Array.from({ length: 500 }, (_, k) => model.times(k + 1)));"
    found = node(scripts() + run, tmp_path)
    process = mt.load(NAME).process
    assert found == [process.times(k + 1) for k in range(500)]


@needs_node
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_file_of_weights_is_read_exactly(dtype, tmp_path):
    smallest = torch.finfo(dtype).smallest_normal
    numbers = torch.tensor([0.0, -1.5, 1 / 3, 2049.0, smallest, -smallest / 4, torch.finfo(dtype).max], dtype=dtype)
    data = base64.b64encode(save({"a.0/b": numbers.reshape(1, -1)})).decode()
    read = f"parameters(Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))).a[0].b"
    found = node(f"{NETWORK}const {{ shape, data }} = {read}; report([shape, [...data]]);", tmp_path)
    assert found == [[1, len(numbers)], numbers.tolist()]


@needs_node
def test_noise_is_standard_normal_and_its_seed_matters(tmp_path):
    report = "report(Array.from({ length: 500 }, (_, seed) => [...normals(seed)(64)]));"
    found = torch.tensor(node(f"{NETWORK}{report}", tmp_path), dtype=torch.float64)  # 32,000 numbers
    assert abs(found.mean()) < 4 / 32000**0.5
    assert abs(found.square().mean() - 1) < 4 * (2 / 32000) ** 0.5
    assert abs((found**4).mean() - 3) < 4 * (96 / 32000) ** 0.5
    assert (found.T @ found / 500 - torch.eye(64)).abs().max() < 0.3  # 2,080 of them, standard error 0.045 or 0.063
    assert len({tuple(row) for row in found.tolist()}) == 500


@needs_node
@pytest.mark.parametrize("name", ["image-label/shapes16", "masked-image/shapes16"])
def test_a_model_of_another_kind_is_refused(name, tmp_path):
    run = "try { report(new Model(MODEL).T); } catch (error) { report(error.message); }"
    said = "only a U-Net that predicts v of a label and an image of weight 1 can be run here"
    assert node(scripts(name) + run, tmp_path) == said


# ---- the page ----


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of these pages alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(website, "PAGES", {"The course": ["live", "any"]})
        patch.setattr(website, "symbols", lambda: "---\norphan: true\n---\n# Symbols\n")
        patch.setattr(website.Source, "api", lambda self: None)
        return website.build(tmp_path_factory.mktemp("live") / "site", only=["none"])


def test_the_first_page_leads_to_it(site):
    article = (site / "index.html").read_text().partition('<article role="main"')[2].partition("</article>")[0]
    assert 'href="live.html"' in article
    assert 'href="any.html"' in article


@pytest.mark.parametrize(("name", "weights"), [("live", "weights.js"), ("any", "any_weights.js")])
def test_a_page_is_as_small_as_it_says(site, name, weights):
    page = (site / f"{name}.html").read_text()
    named = {site / link.partition("?")[0] for link in website.Page(page).fetched}
    files = [site / f"{name}.html", *(file for file in named if file.suffix != ".html")]  # a page is the next one
    assert site / "_static" / "live" / weights in files
    size = sum(file.stat().st_size for file in files)
    assert f"all that it needs is {size / 1e6:.1f} MB" in " ".join(page.split())


@needs_chromium
def test_the_page_draws_what_is_chosen_and_goes_back_in_the_chain(site, tmp_path):
    # noise 1 becomes another digit where a 7 is chosen, as the page says, and more guidance makes it a 7
    play = """<script>
    const told = [], put = (name, value) => {
      const control = document.getElementById(`live-${name}`);
      control.value = value;
      control.dispatchEvent(new Event("input"));
    };
    const tell = (step) => {
      put("time", step);
      const pixels = document.getElementById("live-image").getContext("2d").getImageData(0, 0, 8, 8).data;
      told.push([document.getElementById("live-said").textContent, [...pixels].filter((_, i) => i % 4 === 0)]);
    };
    tell(20); put("digit", 7); tell(20); put("guidance", 2); tell(20); put("steps", 5); tell(0); tell(5);
    document.getElementById("live-noise").click(); tell(5); put("digit", ""); tell(5);
    told.push(document.getElementById("live-guidance").disabled, document.getElementById("live-seed").textContent);
    const out = document.createElement("script"); out.type = "told"; out.textContent = JSON.stringify(told);
    document.body.append(out);
    </script></body>"""
    played = site / "played.html"
    played.write_text((site / "live.html").read_text().replace("</body>", play))
    *shown, disabled, seed = json.loads(re.search(r'<script type="told">(.*?)</script>', opened(played, tmp_path), re.S)[1])
    said, pictures = zip(*shown, strict=True)
    assert said[0] == "Step 20 of 20, t = 0: the label head reads 3 (100%)."
    assert re.fullmatch(r"Step 20 of 20, t = 0: the label head reads [^7] \(\d+%\)\.", said[1])
    assert said[2].startswith("Step 20 of 20, t = 0: the label head reads 7 ")
    assert said[3].startswith("Step 0 of 5, t = 500: ")
    assert said[4].startswith("Step 5 of 5, t = 0: the label head reads 7 ")
    assert len(set(map(tuple, pictures))) == len(pictures)
    assert all(min(picture) == 0 for picture in pictures[:3])  # black around a digit
    assert all(max(picture) > 200 for picture in pictures[:3])
    assert (disabled, seed) == (True, "2")


@needs_chromium
def test_the_page_runs_by_itself_when_it_is_opened(site, tmp_path):
    said = re.search(r'<p id="live-said"[^>]*>', shown := opened(site / "live.html", tmp_path))[0]
    assert 'aria-busy="false"' in said
    assert "Step 20 of 20, t = 0: the label head reads 3 (100%)." in shown


@needs_chromium
def test_words_become_a_picture_and_a_picture_words_and_a_brush_paints_what_is_given(site):
    done = "document.getElementById('live-said').getAttribute('aria-busy') === 'false'"
    pixels = "(name) => [...document.getElementById(`live-${name}`).getContext('2d').getImageData(0, 0, 16, 16).data]"
    box = "document.querySelector('[data-given=%s]')"

    def shown():
        tab.until(done)
        image, painted = tab.evaluate(f"['image', 'segmentation'].map({pixels})")
        said = tab.evaluate("document.getElementById('live-said').textContent")
        words = tab.evaluate("[...document.querySelectorAll('.live fieldset select')].map((s) => s.selectedOptions[0].text)")
        return *(torch.tensor(picture).reshape(-1, 4)[:, :3] for picture in (image, painted)), words[:5], said

    def choose(select, word):
        chosen = f"Object.assign(s, {{ value: [...s.options].find((o) => o.text === '{word}').value }})"
        tab.evaluate(f"((s) => {chosen}.dispatchEvent(new Event('input')))(document.querySelector('{select}'))")

    with browser.opened((site / "any.html").as_uri()) as tab:
        tab.until("document.getElementById('live-said')")
        red, _, words, said = shown()
        assert words == ["grey", "large", "red", "circle", "red circle"]
        assert said == "Step 20 of 20, t = 0: drawn are image, depth, segmentation, label."
        choose("[aria-label=colour]", "blue")
        blue, segments, words, _ = shown()
        assert words == ["grey", "large", "blue", "circle", "blue circle"]
        inside = segments.sum(1) > 0
        assert 20 < inside.sum() < 120
        assert blue[inside].float().mean(0).argmax() == 2
        assert red.float().mean(0).argmax() == 0
        tab.evaluate(f"{box % 'image'}.click(), {box % 'caption'}.click()")  # the caption is read from the picture
        kept, _, words, said = shown()
        assert (kept == blue).all()
        assert words == ["grey", "large", "blue", "circle", "blue circle"]
        assert said == "Step 20 of 20, t = 0: drawn are depth, segmentation, label, caption."
        tab.evaluate(f"{box % 'image'}.click(), document.getElementById('live-empty').click()")
        tab.drag("document.getElementById('live-segmentation')", 30, 10)
        drawn, segments, _, said = shown()
        assert said == "Step 20 of 20, t = 0: drawn are image, depth, label, caption."
        assert 3 < (segments.sum(1) > 0).sum() < 40
        assert (drawn != kept).any()
        assert tab.errors == []
