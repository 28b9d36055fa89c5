"""Boards in JupyterLab, as a reader meets them: a real browser, a real kernel, a mouse that moves a slider."""

import json
import os
import re
import shutil
import sys
import time

import browser
import nbformat
import pytest

from notebooks import FOLDER, ROOT

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="needs Chromium or Chrome, to open JupyterLab")

NOTEBOOK = "[...(globalThis.jupyterapp?.shell.widgets('main') ?? [])].find((page) => page.sessionContext)"
WATCH = """(() => {
  const inside = (name) => document.querySelector(`.widget-vbox ${name}`);
  globalThis.board = () => {
    const image = inside("img"), shown = inside(".widget-output"), said = inside(".widget-html-content");
    return { picture: image?.src, opacity: getComputedStyle(shown).opacity, said: said.innerText.trim() };
  };
  globalThis.seen = [];
  new MutationObserver(() => seen.push(board())).observe(inside(".widget-output").closest(".widget-vbox"),
    { subtree: true, childList: true, attributes: true, characterData: true });
})()"""
"""What a board shows, now and each time that it changes."""
DONE = "board().picture && board().said === ''"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server of JupyterLab: its folder, and the address of a notebook in it."""
    home, places = tmp_path_factory.mktemp("lab"), {}
    for name in ("RUNTIME_DIR", "CONFIG_DIR", "DATA_DIR", "LAB_WORKSPACES_DIR", "LAB_SETTINGS_DIR"):
        (folder := home / name).mkdir()
        places["JUPYTERLAB" + name[3:] if name.startswith("LAB") else f"JUPYTER_{name}"] = str(folder)
    (home / "notebooks").mkdir()
    shutil.copytree(ROOT / "data" / "results", home / "data" / "results")
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", f"--ServerApp.root_dir={home}"]
    environment = {**os.environ, **places, "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "jupyterlab", *options]
    with browser.running(command, env=environment, cwd=home) as server:
        told = json.loads(browser.appeared("jpserver-*.json", home / "RUNTIME_DIR", server).read_text())
        yield home, f"{told['url']}lab/tree/notebooks/{{}}.ipynb?reset&token={told['token']}"


def opened(lab, name, cells):
    """A notebook of the course whose cells of code that match have been run, in a tab."""
    home, address = lab
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and re.search(cells, cell.source, re.M)]
    for cell in notebook.cells:
        cell.outputs = []
    nbformat.write(notebook, home / "notebooks" / f"{name}.ipynb")
    return browser.opened(address.format(name))


def run(tab):
    """Run all cells, and wait until the board of the last one shows a picture."""
    tab.until(f"({NOTEBOOK})?.sessionContext.session?.kernel?.status === 'idle'")
    tab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    tab.until("document.querySelector('.widget-vbox img')", 120)
    tab.evaluate(WATCH)
    tab.until(DONE)


def moved(tab, capsys, name, *drag):
    """Drag something of a board: what it showed before, meanwhile and in the end; the time of the move is printed."""
    before = tab.evaluate("seen.length = 0, board()")
    start = time.perf_counter()
    tab.drag(*drag)
    tab.until(f"{DONE} && board().picture !== {json.dumps(before['picture'])}")
    with capsys.disabled():
        print(f"\n{name} in JupyterLab: {time.perf_counter() - start:.2f} s from mouse to picture")
    return before, tab.evaluate("seen"), tab.evaluate("board()")


def check(before, seen, after):
    """While the new picture is drawn the old one is faint, below a word that says so."""
    meanwhile = [shown for shown in seen if shown["said"] == "drawing ..."]
    assert any(shown["picture"] == before["picture"] and shown["opacity"] == "0.35" for shown in meanwhile), seen
    assert before["opacity"] == after["opacity"] == "1"
    assert after["picture"] != before["picture"]


def test_a_slider_of_the_quickstart_redraws_its_samples(lab, capsys):
    with opened(lab, "00_quickstart", r"^import torch|^model = mt\.load\(|^sliders = ") as tab:
        run(tab)
        value = "document.querySelectorAll('.widget-vbox .widget-readout')[1].textContent"
        assert tab.evaluate(value) == "1.00"
        titles = "[...document.querySelectorAll('.widget-vbox .widget-slider label')].map((label) => label.title)"
        assert tab.evaluate(titles) == ["label", "guidance", "steps", "seed"]
        check(*moved(tab, capsys, "guidance", "document.querySelectorAll('.noUi-handle')[1]", 40))
        assert float(tab.evaluate(value)) > 1.5
        assert tab.errors == []


def test_a_slider_and_a_brush_of_the_explorer_redraw_a_scene(lab, capsys):
    with opened(lab, "explorer", r"^import torch|any_board\(") as tab:
        run(tab)
        check(*moved(tab, capsys, "seed", "[...document.querySelectorAll('.noUi-handle')].at(-1)", 30))
        check(*moved(tab, capsys, "painting", "document.querySelector('.widget-vbox canvas')", 20, 20))
        assert tab.errors == []
