"""The experiment on packed photographs: what variants are, training and judging by the commands."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import generator
from test_imagenet import class_folders, tiny

import mtdiff as mt
from mtdiff import cli
from mtdiff.datasets import Dataset
from mtdiff.datasets.imagenet import prepare
from mtdiff.experiments import EXPERIMENTS, imagenet, imagenet_scores, masked_image, report
from mtdiff.features import FeatureNetwork, feature_network

E = EXPERIMENTS["imagenet"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with two packed sets, one with boxes, of three classes and 12 images each."""
    root = tmp_path_factory.mktemp("sets")
    prepare(tiny(root / "a", each=4), root / "tiny-imagenet32", 32, progress=False)
    prepare(class_folders(root / "b", each=4), root / "imagenette32", 32, progress=False)
    return root


@pytest.fixture(autouse=True)
def where(sets, monkeypatch):
    monkeypatch.setenv(imagenet.FOLDER, str(sets))


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mtdiff", *map(str, words)])
    cli.main()


def test_variants_have_the_same_backbone_and_differ_in_what_they_see():
    models = {variant: E.build("tiny-imagenet32", variant, 0) for variant in E.variants}
    assert {name: tuple(model.modalities) for name, model in models.items()} == imagenet.MODALITIES
    backbones = [model.backbone.state_dict() for model in models.values()]
    for other in backbones[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in backbones[0].items())
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert max(sizes.values()) < 1.02 * min(sizes.values())
    large = sum(p.numel() for p in imagenet.assemble(64, "masked", ("a", "b")).parameters())
    assert 3.3e6 < large < 3.7e6
    steps = {(c.steps, c.batch_size, c.lr) for c in (E.config("imagenette64", v, "full") for v in E.variants)}
    assert len(steps) == 1


def test_a_variant_needs_what_it_is_shown_and_no_more():
    """Images of one class have no label to tell apart, and need none without one."""
    for variant in ("plain", "masked"):
        assert tuple(imagenet.assemble(32, variant, ("toaster",)).modalities) == imagenet.MODALITIES[variant]
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        imagenet.assemble(32, "label", ("toaster",))


@pytest.mark.parametrize("variant", E.variants)
def test_every_variant_trains_and_is_judged(variant, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    words = ("imagenet", "--data", "tiny-imagenet32")
    run(monkeypatch, "train", *words, "--variant", variant, "--steps", 2, "--batch-size", 4, "--device", "cpu", "--out", out)
    for module in (imagenet_scores, masked_image):
        monkeypatch.setattr(module, "STEPS", 8)
    run(monkeypatch, "evaluate", *words, "--models", out, "--n", 4, "--out", tmp_path / "r.json")
    m = json.loads((tmp_path / "r.json").read_text())["variants"][variant]
    drawn = {"plain": {"alone"}, "conditional": {"alone"}, "classifier": set(), "noisy-classifier": set()}
    drawn = drawn.get(variant, {"alone", "joint"})
    bound = {"bound"} if drawn else set()
    extra = {"masked": {"told", "repeated", "mean", "heat"}, "plain": set(), "conditional": set(), "box": {"box"}}
    head = {"head", "levels"} if "classifier" in variant or variant in ("label", "box") else set()
    given = variant in ("label", "box", "conditional")
    scales = {f"guidance {s}" for s in imagenet_scores.GUIDANCE} if given else set()
    assert m.keys() == drawn | bound | extra.get(variant, set()) | head | scales
    assert f"| tiny-imagenet32 | {variant} |" in capsys.readouterr().out
    for kind in drawn:
        assert m[kind]["pixels at 8x8"]["precision"]["mean"] in [k / 4 for k in range(5)], "a share of four images"


def test_a_set_that_is_not_packed_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv(imagenet.FOLDER, str(tmp_path))
    message = "mtdiff data get imagenette && mtdiff data prepare data/raw/imagenette2-160 --size 64 --out .*imagenette64"
    with pytest.raises(FileNotFoundError, match=message):
        E.data["imagenette64"]("train")


def test_a_set_without_boxes_has_no_box_variant():
    config = E.config("imagenette32", "box", "quick")
    with pytest.raises(ValueError, match="have no box: leave out the modality 'box'"):
        E.trainer("imagenette32", "box", config, None)


def test_a_trained_model_can_look_at_images(tmp_path):
    model = E.build("tiny-imagenet32", "classifier", 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(1)))
    model.save(tmp_path / "judge")
    network = feature_network(str(tmp_path / "judge"))
    image = torch.rand(5, 3, 32, 32, generator=generator(2)) * 2 - 1
    a, b = network.network(image), network.network(image)
    assert a.shape == (5, model.backbone.pooled)
    assert torch.equal(a, b)
    assert not torch.allclose(a[0], a[1])
    z, t = model.process.at(0, image).level[0] * image, 0
    present = {"image": torch.ones(5).bool(), "label": torch.zeros(5).bool()}
    clean = model.predict(z, t, present=present).law["label"].logits
    assert torch.equal(network.classify(image), clean.argmax(1))
    plain = E.build("tiny-imagenet32", "plain", 0).save(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"a model of images and labels is needed, this one has \['image'\]"):
        feature_network(str(plain))


def test_bits_per_dimension_are_those_of_the_bound(monkeypatch):
    """In batches as at once: the same mean, and the same error, within what draws differ."""
    model, image = E.build("tiny-imagenet32", "plain", 0), imagenet.packed("tiny-imagenet32", "test", "plain")[:12]["image"]
    whole = mt.elbo(model, {"image": image}, 15, generator=generator(1))
    monkeypatch.setattr(imagenet_scores, "BATCH", 5)
    monkeypatch.setattr(imagenet_scores, "DRAWS", 15)
    found = imagenet_scores.image_bound(model, image, generator(2))
    scale = 3 * 32 * 32 * math.log(2)
    assert abs(found["bits_per_dim"] - whole.bits_per_dim("image")) < 4 * math.hypot(found["stderr"], whole.stderr / scale)
    assert found["stderr"] == pytest.approx(whole.stderr / scale, rel=0.5)


def test_the_error_of_bits_per_dimension_is_that_of_all_images_not_of_those_in_a_batch(monkeypatch):
    """Images of two kinds, a batch each: nearly all of the spread is between the batches."""
    model = E.build("tiny-imagenet32", "plain", 0)
    totals = iter(torch.tensor([1000.0, 1010.0, 3000.0, 3010.0]).double().split(2))
    monkeypatch.setattr(imagenet_scores, "BATCH", 2)
    monkeypatch.setattr(imagenet_scores, "elbo", lambda *args, **options: SimpleNamespace(totals=next(totals)))
    found = imagenet_scores.image_bound(model, torch.zeros(4, 3, 32, 32), generator(0))
    nats = torch.tensor([1000.0, 1010.0, 3000.0, 3010.0]).double()
    assert found["stderr"] == pytest.approx(float(nats.std()) / 2 / (3072 * math.log(2)))


def by_class(classes=10, each=40):
    """Photographs class by class, as they are packed; a pixel tells the class."""
    label = torch.arange(classes).repeat_interleave(each)
    image = (label.float() / classes).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    return Dataset("sorted/val", {"image": image, "label": label}, tuple(map(str, range(classes))))


def test_every_share_of_the_photographs_is_a_sample_of_all_classes(monkeypatch):
    """What is filled (a tenth), what is drawn beside (all), and what is looked at along a training."""
    test, seen_by = by_class(), {}
    model = imagenet.assemble(32, "masked", test.names).eval()
    monkeypatch.setattr(imagenet_scores, "fillings", lambda model, image, *a: seen_by.update(filled=image) or {})
    monkeypatch.setattr(imagenet_scores, "image_bound", lambda model, image, *a: seen_by.update(bound=image) or {})
    monkeypatch.setattr(imagenet_scores, "drawn_scores", lambda *a, **k: {})
    imagenet_scores.evaluate(model, test, n=300)
    seen_by["along"] = test[imagenet_scores.mixed(len(test), 100)]["image"][:30]
    for what, count in {"filled": 30, "bound": 300, "along": 30}.items():
        counts = (10 * seen_by[what][:, 0, 0, 0]).round().long().bincount(minlength=10)
        assert counts.sum() == count
        assert counts.max() < count / 10 + 4 * (count * 0.1 * 0.9) ** 0.5


def in_another_order(sets, tmp_path, monkeypatch):
    """The same photographs, their classes numbered backwards, under the same name; returns their names."""
    names = imagenet.packed("tiny-imagenet32", "test").names
    root = next(sets.glob("a*"))
    prepare(root, tmp_path / "backwards" / "tiny-imagenet32", 32, classes=names[::-1], progress=False)
    monkeypatch.setenv(imagenet.FOLDER, str(tmp_path / "backwards"))
    return names


def test_a_model_and_its_data_number_classes_alike_or_are_matched_by_name(sets, tmp_path, monkeypatch, capsys):
    card = {"experiment": "imagenet", "variant": "classifier", "data": {"name": "tiny-imagenet32/train"}}
    folder = E.build("tiny-imagenet32", "classifier", 0).save(tmp_path / "model", card)
    seen_by = {}
    monkeypatch.setattr(imagenet_scores, "head_scores", lambda model, test, seed: seen_by.update(test=test) or {"a": 0.5})
    words = ("evaluate", "imagenet", "--data", "tiny-imagenet32", "--models", folder, "--n", 12)
    run(monkeypatch, *words)
    before = seen_by["test"]
    names = in_another_order(sets, tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="classes otherwise: class 0 is 'name 0' to the model and 'name 2' there"):
        run(monkeypatch, *words)
    run(monkeypatch, *words, "--elsewhere")
    assert seen_by["test"].names == before.names == names
    told = {tuple(image.flatten().tolist()): int(k) for image, k in zip(*before.values.values(), strict=True)}
    for image, k in zip(*seen_by["test"].values.values(), strict=True):
        assert told[tuple(image.flatten().tolist())] == k, "the same photograph has the same label"
    fewer = prepare(next(sets.glob("a*")), tmp_path / "few" / "tiny-imagenet32", 32, classes=names[:2], progress=False)
    monkeypatch.setenv(imagenet.FOLDER, str(tmp_path / "few"))
    assert fewer["val"]["count"] == 8
    with pytest.raises(SystemExit, match=r"the same classes; in one of them only: \['name 2'\]"):
        run(monkeypatch, *words, "--elsewhere")


def test_a_held_out_label_is_given_by_its_name(sets, tmp_path, monkeypatch):
    card = {"experiment": "imagenet", "data": {"name": "tiny-imagenet32/train"}}
    folder = E.build("tiny-imagenet32", "label", 0).save(tmp_path / "model", card)
    in_another_order(sets, tmp_path, monkeypatch)
    drawn = []
    monkeypatch.setattr("mtdiff.cli.sample.sample", lambda *a, given, **o: drawn.append(given) or {"label": given["label"]})
    monkeypatch.setattr("mtdiff.cli.sample.save_picture", lambda *a: None)
    run(monkeypatch, "sample", folder, "--given", "label=test:0", "image=test:0", "--out", tmp_path / "a.png")
    assert drawn[0]["label"].tolist() == [2], "the first class there is the model's last"
    assert drawn[0]["image"].dtype == torch.float32
    with pytest.raises(SystemExit, match=r"--given box=test:0: unknown modality"):
        run(monkeypatch, "sample", folder, "--given", "box=test:0")


def test_judges_number_classes_by_their_names(monkeypatch):
    """A network that knows the classes in another order, and one that knows too few."""
    monkeypatch.setattr(imagenet_scores, "head_scores", lambda *a: {})
    test = by_class(3, 10)
    model = imagenet.assemble(32, "classifier", test.names).eval()

    def classify(image):
        return 2 - (3 * image[:, 0, 0, 0]).round().long()

    judge = FeatureNetwork("backwards", imagenet_scores.PIXELS.network, classify, ("2", "1", "0"))
    assert imagenet_scores.evaluate(model, test, n=30, features=judge)["real"] == {"classes": 1.0}
    with pytest.raises(ValueError, match=r"do not know the classes \['0'\]"):
        imagenet_scores.evaluate(model, test, n=30, features=replace(judge, names=("2", "1")))


def test_the_judge_is_judged_on_real_images():
    model, test = E.build("tiny-imagenet32", "classifier", 0), imagenet.packed("tiny-imagenet32", "test", "classifier")
    network = FeatureNetwork("constant", imagenet_scores.PIXELS.network, lambda image: torch.full((len(image),), 2))
    found = imagenet_scores.evaluate(model, test, n=12, features=network)
    assert found["real"] == {"classes": pytest.approx(1 / 3)}
    assert "real" not in imagenet_scores.evaluate(model, test, n=12)


def test_boxes_are_scored_by_their_overlap():
    """The left half is probable, everything is drawn; the truth covers a quarter, half of it on the left."""

    class Half(torch.nn.Module):
        modalities, device = {"image": 0, "box": 0}, "cpu"
        process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0, "box": 0.0})

        def encode(self, values):
            return values

        def predict(self, z, t, present):
            logits = torch.zeros(len(z), 2, 8, 8)
            logits[:, 1] = torch.where(torch.arange(8) < 4, 0.1, -0.1)
            return SimpleNamespace(law={"box": SimpleNamespace(logits=logits)})

        def read(self, z, t, generator, prediction):
            return {"box": torch.ones(len(z), 1, 8, 8)}

    truth = torch.zeros(6, 1, 8, 8)
    truth[..., :4, 2:6] = 1  # 16 pixels, 8 of them in the left half
    real = Dataset("boxes", {"image": torch.zeros(6, 3, 8, 8), "box": truth})
    found = imagenet_scores.box_overlap(Half(), real, generator(0))
    assert found == pytest.approx({"overlap": 8 / 40, "drawn": 16 / 64, "everything": 16 / 64, "constant": 1})


def test_the_best_constant_box_is_the_one_that_most_boxes_have():
    boxes = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    boxes[:3, :, :4, :4], boxes[3, :, 4:, 4:] = True, True
    usual = boxes[:1].expand_as(boxes)
    assert imagenet_scores._overlap(boxes, usual).tolist() == [1, 1, 1, 0]
    assert imagenet_scores.best_constant(boxes) == 0.75


def test_classes_of_drawn_images_are_confirmed_or_not():
    network = FeatureNetwork("mean", lambda image: image.flatten(1)[:, :2], lambda image: (image.mean((1, 2, 3)) > 0).long())

    def draw(rows):
        sign = torch.where(rows % 2 == 0, 1.0, -1.0)
        noise = torch.rand(len(rows), 3, 4, 4, generator=generator(int(rows[0])))
        return {"image": sign.view(-1, 1, 1, 1) * noise, "label": torch.ones(len(rows)).long()}

    real = imagenet_scores.seen([torch.randn(600, 3, 4, 4, generator=generator(5))], network)
    out = imagenet_scores.drawn_scores(draw, 600, real, network)
    assert out["classes"] == 0.5
    assert out["mean"]["frechet"] > 0


@pytest.mark.parametrize("nothing", [None, math.nan], ids=["null", "of before"])
def test_the_table_has_a_row_for_each_result(nothing):
    entry = {"mean": 1.0, "stderr": None, "n": 1}
    look = {"frechet": entry, "kernel": entry, "precision": entry, "recall": entry}
    few = {**look, "frechet": {**entry, "mean": nothing}}
    result = {
        "experiment": "imagenet", "data": "imagenette64",
        "variants": {"plain": {"alone": {"FID": look}, "bound": {"bits_per_dim": entry}}, "label": {"joint": {"FID": few}},
                     "classifier": {"head": {"accuracy": entry}}},
    }  # fmt: skip
    table = report.markdown([result]).splitlines()
    assert table[2] == "| imagenette64 | plain | FID | 1.0 / 1.000 | 1.00 / 1.00 | - | - | 1.000 | - | - | - | - |"
    assert table[3] == "| imagenette64 | label | FID | - | - | 1.000 | - | - | - | - | - | - |", (
        "too few images for the first"
    )
    assert table[4] == "| imagenette64 | classifier | - | - | - | - | - | - | 1.000 | - | - | - |"


def test_features_are_for_this_experiment_only(monkeypatch):
    with pytest.raises(SystemExit, match="--features is for imagenet, image-label has judges of its own"):
        run(monkeypatch, "evaluate", "image-label", "--features", "inception")


def test_progress_is_an_error_a_distance_and_an_accuracy(monkeypatch):
    """A stand-in is half a unit off and names every second image; what it draws are the real images, or white ones."""
    image, label = torch.rand(40, 3, 32, 32, generator=generator(3)) * 2 - 1, torch.arange(40) % 2
    order = imagenet_scores.mixed(40, 40)

    class Off(torch.nn.Module):
        modalities, rule, device = {"image": 0, "label": 0}, {"label": "conditioned"}, "cpu"
        process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0, "label": 0.0})

        def encode(self, values):
            return {"image": values["image"], "label": torch.zeros_like(values["image"])}

        def predict(self, z, t, present):
            logits = torch.tensor([[1.0, 0.0]]).expand(len(z), 2)
            return SimpleNamespace(estimate={"image": image[order] + 0.5}, law={"label": SimpleNamespace(logits=logits)})

    test = Dataset("photographs", {"image": image, "label": label})
    found = {}
    for name, drawn in (("real", image), ("white", torch.ones_like(image))):
        monkeypatch.setattr(imagenet_scores, "sample_many", lambda *a, drawn=drawn, **o: {"image": drawn})
        found[name] = imagenet_scores.progress(Off(), test)
        assert found[name]["error"] == pytest.approx(0.25)
        assert found[name]["head"] == 0.5
    assert abs(found["real"]["kernel"]) < 0.1 * found["white"]["kernel"]


def test_a_training_notes_its_progress(monkeypatch):
    monkeypatch.setattr(imagenet_scores, "PROBED", 8)
    config = replace(E.config("tiny-imagenet32", "label", "full"), steps=2, batch_size=4, probe_every=2)
    trainer = E.trainer("tiny-imagenet32", "label", config, None)
    trainer.run(progress=False)
    assert trainer.probes[-1].keys() == {"step", "seconds", "error", "kernel", "head"}
