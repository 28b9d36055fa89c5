"""The picture to paint: what Python sees of it, and what the page does when somebody paints."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import traitlets

from mtdiff.widgets import Canvas

MODULE = Path(__file__).parent.parent / "mtdiff" / "widgets" / "canvas.js"
PAGE = """
const element = (tag) => ({
  tag, style: {}, attributes: {}, children: [], listeners: {},
  setAttribute(name, value) { this.attributes[name] = value; },
  append(...more) { this.children.push(...more); },
  replaceChildren(...all) { this.children = all; },
  addEventListener(name, heard) { this.listeners[name] = heard; },
  setPointerCapture() {},
  getBoundingClientRect: () => ({ left: 10, top: 20, width: 80, height: 80 }),
  getContext() { return { filled: [], fillRect(...box) { this.filled.push([this.fillStyle, ...box]); } }; },
});
globalThis.document = { createElement: element };
const state = { names: ["none", "a", "b"], colours: ["#000", "#aaa", "#bbb"], size: 8, value: [] }, told = [], heard = {};
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; },
  save_changes: () => told.push([...state.value]),
  on: (name, f) => { heard[name] = f; },
  off: (name) => { delete heard[name]; },
};
const el = element("div"), leave = (await import(MODULE)).default.render({ model, el });
const [canvas, tools] = el.children;
const at = (x, y) => ({ clientX: 10 + 10 * x, clientY: 20 + 10 * y, buttons: 1, pointerId: 1 });
canvas.listeners.pointerdown(at(2.5, 3.5));
canvas.listeners.pointermove({ ...at(7.5, 7.5), buttons: 0 });
canvas.listeners.pointerup(at(2.5, 3.5));
tools.children[2].onclick();
canvas.listeners.pointerdown(at(0.5, 0.5));
canvas.listeners.pointerup(at(0.5, 0.5));
tools.children[3].onclick();
state.value = Array.from({ length: 64 }, (_, i) => i % 3);
heard["change:value"]();
canvas.listeners.pointerup(at(0, 0));
leave();
const pressed = tools.children.map((button) => button.attributes["aria-pressed"]);
console.log(JSON.stringify({ told, left: Object.keys(heard), faint: canvas.style.opacity, pressed }));
"""


def test_a_painting_is_its_classes_row_by_row():
    canvas = Canvas(["none", "circle"], 4)
    assert canvas.value == []
    canvas.paint(torch.eye(4, dtype=torch.long))
    assert canvas.value == torch.eye(4).flatten().tolist()
    assert len(canvas.colours) == 2


@pytest.mark.parametrize("value", [[0] * 15, [2] * 16, [-1] * 16])
def test_a_painting_of_another_size_or_of_other_classes_is_refused(value):
    with pytest.raises(traitlets.TraitError, match=r"16 classes in 0\.\.1"):
        Canvas(["none", "circle"], 4, value=value)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's script")
def test_the_page_paints_with_the_chosen_class_and_tells_it_when_the_pointer_is_lifted(tmp_path):
    script = tmp_path / "page.mjs"
    module = tmp_path / "canvas.mjs"
    module.write_text(MODULE.read_text())
    script.write_text(PAGE.replace("MODULE", json.dumps(module.as_uri())))
    out = subprocess.run(["node", script], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    first, second, cleared, shown = found["told"]
    assert [i for i, k in enumerate(first) if k] == [3 * 8 + 2]  # where the pointer was down, and not where it only moved
    assert first[3 * 8 + 2] == 1
    assert (second[0], second[3 * 8 + 2]) == (2, 1)
    assert cleared == []
    assert shown == [i % 3 for i in range(64)]  # what Python painted is what goes back
    assert found["left"] == []
    assert found["faint"] == 1
    assert found["pressed"][:3] == [False, False, True]
