"""Models on the Hugging Face hub, by its own client and a stand-in on this machine: no network."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from helpers import image_label_model

import mtdiff as mt
from mtdiff import hub
from mtdiff.cards import figures

SHA = "0123456789abcdef0123456789abcdef01234567"


class Shelf(http.server.BaseHTTPRequestHandler):
    """Models as the hub hands them out: which files there are, and each of them."""

    folder: Path
    asked: list[str]

    def do_GET(self):
        self.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        user, name = path.removeprefix("/api/models").split("/")[1:3]
        place = self.folder / user / name
        if not place.is_dir():
            return self.answer(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models") and "/revision/gone" in path:
            return self.answer(b'{"error": "Invalid rev id: gone"}', 404, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/models") and "/tree/" in path:
            files = [
                {"type": "file", "path": each.name, "size": each.stat().st_size, "oid": SHA} for each in place.iterdir()
            ]
            return self.answer(json.dumps(files).encode())
        if path.startswith("/api/models"):
            files = [{"rfilename": file.name} for file in sorted(place.iterdir())]
            return self.answer(json.dumps({"id": f"{user}/{name}", "sha": SHA, "siblings": files}).encode())
        file = place / path.rpartition("/")[2]
        data = file.read_bytes()
        return self.answer(data, 200, {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA})

    do_HEAD = do_GET

    def answer(self, data, status=200, headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": len(data), "Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(tmp_path):
    """The folder of what is on the hub, what was asked for, and a function that runs code against it in a process."""
    Shelf.folder, Shelf.asked = tmp_path / "shelf", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}

    def script(code):
        command = [sys.executable, "-c", f"import mtdiff as mt\n{code}"]
        return subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, check=False)

    yield Shelf.folder, Shelf.asked, script
    server.shutdown()


def test_a_model_is_loaded_from_the_hub_by_its_prefix_alone(shelf):
    folder, asked, script = shelf
    model = image_label_model()
    model.save(folder / "me" / "marks", {"note": "of mine"})
    (folder / "me" / "marks" / "evil.py").write_text("raise SystemExit('ran')")
    done = script("m = mt.load('hf:me/marks'); print(m.card, float(sum(p.detach().double().sum() for p in m.parameters())))")
    assert done.returncode == 0, done.stderr
    note, _, total = done.stdout.rpartition(" ")
    assert note == "{'note': 'of mine'}"
    assert float(total) == pytest.approx(float(sum(p.detach().double().sum() for p in model.parameters())), abs=1e-6)
    assert not [line for line in asked if "evil" in line]
    assert f"GET /me/marks/resolve/{SHA}/model.safetensors" in asked
    before = list(asked)
    done = script("mt.load('me/marks')")
    assert "FileNotFoundError: no model at 'me/marks'" in done.stderr
    assert asked == before, "without the prefix nothing is looked up"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/nothing", "no model at 'hf:me/nothing': 404"),
        ("hf:me/marks@gone", "no model at 'hf:me/marks@gone': 404"),
        ("hf:me", "no model at 'hf:me': "),
        ("hf:a/b/c", "no model at 'hf:a/b/c': Repo id must be in the form"),
        ("hf:me/other", "'hf:me/other' has no card.json: it is no model of mtdiff"),
    ],
)
def test_what_is_not_there_is_one_clear_line(name, message, shelf):
    folder, _, script = shelf
    image_label_model().save(folder / "me" / "marks")
    (folder / "me" / "other").mkdir()
    (folder / "me" / "other" / "config.json").write_text("{}")
    done = script(f"import sys; sys.argv[1:] = ['info', {name!r}]; from mtdiff import cli; cli.main()")
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]  # above it, the client's own progress
    assert "Traceback" not in done.stderr
    assert line.startswith(f"mtdiff: error: {message}")


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    """What was made and uploaded, in place of the hub's interface."""
    made = []

    def create_repo(self, repo_id, **options):
        made.append((repo_id, options))

    def upload_folder(self, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    return made, tmp_path


def test_a_model_is_pushed_with_a_page_and_comes_back(uploads, monkeypatch):
    made, place = uploads
    model = mt.load("image-label/digits")
    assert model.push_to_hub("me/digits", "cc-by-4.0", private=True).endswith("/me/digits")
    assert made == [("me/digits", {"private": True, "exist_ok": True})]
    folder = place / "me" / "digits"
    assert {file.name for file in folder.iterdir()} == {"README.md", "card.json", "model.safetensors"}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda which, **_: str(place / which))
    again = mt.load("hf:me/digits")
    assert again.card == model.card
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))

    card = huggingface_hub.ModelCard.load(folder / "README.md")
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "mtdiff")
    assert front["tags"] == ["mtdiff", "diffusion", "multi-modal", "image", "label"]
    found = {each.metric_type: each.metric_value for each in card.data.eval_results}
    expected = figures(model.card["metrics"])
    assert found == {name: value for name, value in expected.items() if name.split(" / ")[-1] not in ("n", "seed")}
    assert {each.dataset_name for each in card.data.eval_results} == {"digits/train"}
    assert "312,044 parameters" in card.content
    assert "- training: steps 5000, " in card.content
    assert f"| joint / agreement | {model.card['metrics']['joint']['agreement']} |" in card.content
    (code,) = [block.removeprefix("python\n") for block in card.content.split("```") if block.startswith("python")]
    names = {}
    exec(code, names)
    assert len(names["drawn"]["label"]) == 16


def test_a_page_of_a_bare_model_says_what_it_needs(uploads):
    class Handmade(mt.MLP):
        pass

    Handmade.__module__ = "handmade"
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0})
    model = mt.MTDiffusion(process, {"x": mt.Vector(3)}, Handmade((3,), width=16, blocks=1), (3,))
    model.push_to_hub("me/bare", "mit")
    text = (uploads[1] / "me" / "bare" / "README.md").read_text()
    assert "import handmade  # classes of its own\nimport mtdiff as mt\n" in text
    assert "model-index" not in text
    assert "| figure" not in text
    mt.Backbone.kinds.pop("Handmade")


def test_without_the_hubs_client_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"hf: \(the hub\) needs huggingface_hub: pip install 'mtdiff\[hub\]'"):
        mt.load("hf:me/marks")
    with pytest.raises(ImportError, match=r"push_to_hub needs huggingface_hub: pip install 'mtdiff\[hub\]'"):
        image_label_model().push_to_hub("me/marks", "mit")
    assert hub.PREFIX == "hf:"
