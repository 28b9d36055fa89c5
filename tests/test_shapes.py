"""The shapes world against its own description, pixel by pixel."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtdiff.datasets.shapes import (
    BACKGROUNDS,
    COLOURS,
    MODALITIES,
    SHAPES,
    SIZES,
    VOCABULARY,
    Scene,
    layout,
    night,
    numbers,
    palette,
    parse,
    read_caption,
    render,
    shapes,
    unpalette,
    words,
)

N = 300
INDEX = range(N)


@pytest.fixture(scope="module", params=[16, 32])
def data(request):
    return shapes("train", request.param, N)


def inside(kind: str, dx: float, dy: float, r: float) -> bool:
    """Is a point in a shape, told by areas and angles and not by distances."""
    if kind == "circle":
        return dx * dx + dy * dy < r * r
    if kind == "square":
        return max(abs(dx), abs(dy)) < 0.9 * r
    height, width = 1.95 * r, 1.3 * math.sqrt(3) * r  # an equilateral triangle, tip up, centred by height
    down = dy + height / 2  # how far below the tip
    return 0 < down < height and abs(dx) < width / 2 * down / height


def test_a_scene_is_the_same_in_any_batch(data):
    size = data.values["image"].shape[-1]
    for rows in ([0], [N - 1], [7, 3, 250]):
        for name, value in render(rows, size).items():
            assert torch.equal(value, data.values[name][rows]), name


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_scenes_can_be_had_by_the_number_of_their_objects(objects):
    index = numbers("test", 50, objects=objects)
    assert bool((layout(index).count == objects).all())
    skipped = sorted(set(range(index[0], index[-1])) - set(index.tolist()))
    assert not bool((layout(skipped).count == objects).any())
    assert all(len(scene.objects) == objects for scene in parse(render(index, 16)["caption"]))


def test_more_scenes_begin_with_the_same_ones():
    few, many = shapes("test", 16, 10), shapes("test", 16, 200)
    assert all(torch.equal(value, many.values[name][:10]) for name, value in few.values.items())
    assert few.hash() == shapes("test", 16, 10).hash()


def test_a_scene_is_the_same_at_any_size():
    """What is not a picture is equal; a picture made smaller is the small picture, up to how edges are smoothed."""
    small, large = shapes("train", 16, 50).values, shapes("train", 64, 50).values
    assert torch.equal(small["label"], large["label"])
    assert torch.equal(small["caption"], large["caption"])
    shrunk = torch.nn.functional.avg_pool2d(large["image"], 4)
    assert (shrunk - small["image"]).abs().mean() < 0.02
    shrunk = torch.nn.functional.avg_pool2d(large["night"], 4)
    assert (shrunk - small["night"]).abs().mean() < 0.02


def test_train_test_and_other_seeds_are_other_scenes():
    sets = [shapes("train", 16, 500), shapes("test", 16, 500), shapes("train", 16, 500, seed=1)]
    seen = [{row.numpy().tobytes() for row in data.values["image"]} for data in sets]
    assert all(len(rows) == 500 for rows in seen)
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_names_shapes_types_and_ranges(data):
    n, s = data.values["image"].shape[0], data.values["image"].shape[-1]
    expected = {
        "image": ((n, 3, s, s), torch.float32),
        "night": ((n, 3, s, s), torch.float32),
        "segmentation": ((n, s, s), torch.int64),
        "masks": ((n, 3, s, s), torch.bool),
        "depth": ((n, 1, s, s), torch.float32),
        "sketch": ((n, 1, s, s), torch.float32),
        "label": ((n,), torch.int64),
        "caption": ((n, 10), torch.int64),
    }
    assert tuple(data.values) == MODALITIES == tuple(expected)
    for name, value in data.values.items():
        assert (tuple(value.shape), value.dtype) == expected[name]
    for name in ("image", "night", "depth", "sketch"):
        assert data.values[name].abs().max() <= 1, name
    for name in ("image", "night", "sketch"):
        levels = (data.values[name] + 1) * 127.5
        assert (levels - levels.round()).abs().max() < 1e-4, name
    assert data.values["depth"].max() == 1
    assert data.values["sketch"].min() == -1
    assert set(data.values["segmentation"].unique().tolist()) == {0, 1, 2, 3}


def test_only_what_is_wanted():
    some = shapes("train", 16, 5, modalities=("caption", "night"))
    assert tuple(some.values) == ("caption", "night")
    whole = shapes("train", 16, 5)
    assert all(torch.equal(value, whole.values[name]) for name, value in some.values.items())
    assert len(shapes(modalities=["label"])) == 10_000
    assert len(shapes("test", modalities=["label"])) == 2_000


def test_objects_lie_in_the_picture_from_left_to_right():
    scene = layout(range(5000))
    for i in range(0, 5000, 7):
        there = scene.depth[i].isfinite()
        assert there.tolist() == [k < scene.count[i] for k in range(3)]
        assert all(a < b for a, b in pairwise(scene.x[i][there].tolist()))
    there = scene.depth.isfinite()
    reach = scene.radius * torch.tensor([1.0, 0.9, 1.3 * math.sqrt(0.75)])[scene.shape]
    for place in (scene.x, scene.y):
        assert ((place - 0.9 * reach > 0) & (place + 0.9 * reach < 1))[there].all()
    assert (scene.x - reach > 0)[there].all()
    assert (scene.x + reach < 1)[there].all()


def test_owner_of_every_pixel_by_hand(data):
    """Segmentation, masks and depth at each pixel: of the nearest object whose shape holds the pixel's centre."""
    values, scene, s = data.values, layout(INDEX), data.values["image"].shape[-1]
    wrong = 0
    for i in range(40):
        for row in range(s):
            for column in range(s):
                holds = [
                    k
                    for k in range(int(scene.count[i]))
                    if inside(
                        SHAPES[scene.shape[i, k]],
                        (column + 0.5) / s - float(scene.x[i, k]),
                        (row + 0.5) / s - float(scene.y[i, k]),
                        float(scene.radius[i, k]),
                    )
                ]
                k = min(holds, key=lambda k: float(scene.depth[i, k]), default=None)
                mask = [k == j for j in range(3)]
                kind, depth = (0, 1.0) if k is None else (int(scene.shape[i, k]) + 1, 2 * float(scene.depth[i, k]) - 1)
                same = values["masks"][i, :, row, column].tolist() == mask
                same &= int(values["segmentation"][i, row, column]) == kind
                same &= abs(float(values["depth"][i, 0, row, column]) - depth) < 1e-6
                wrong += not same
    assert wrong <= 1  # a centre that lies on an edge may be rounded either way


def test_masks_are_disjoint_and_every_object_is_seen(data):
    masks, caption = data.values["masks"], data.values["caption"]
    assert masks.sum(1).max() == 1
    assert torch.equal(masks.any(1), data.values["segmentation"] > 0)
    assert torch.equal(masks.flatten(2).any(2), caption[:, 1::3] > 0)


def test_hardly_an_object_is_hidden():
    """At least half of nearly every object is seen: fewer than 0.5% show less than 60% of their area."""
    index = range(3000)
    seen, scene = render(index, 64, modalities=["masks"])["masks"].sum((2, 3)), layout(index)
    factors = torch.tensor([math.pi, 1.8**2, 0.75 * math.sqrt(3) * 1.3**2])
    area = factors[scene.shape] * (64 * scene.radius) ** 2
    share = (seen / area)[scene.depth.isfinite()]
    assert (share < 0.6).double().mean() < 0.005
    assert share.min() > 0.3
    assert abs(float(share.median()) - 1) < 0.02


def test_the_inside_of_an_object_has_its_colour_and_fog(data):
    """Inside a mask and off all lines, a pixel is the object's colour mixed with 35% of its depth of the background's."""
    image, masks, scene = (data.values["image"] + 1) / 2, data.values["masks"], layout(INDEX)
    core = masks & (data.values["sketch"] == -1)
    corner = torch.stack([image[i, :, 0, 0] for i in INDEX])
    clear = {}
    for i in INDEX:
        if (data.values["sketch"][i, 0, 0, 0] > -1) or masks[i, :, :2, :2].any():
            continue
        for k in range(int(scene.count[i])):
            fog = 0.35 * float(scene.depth[i, k])
            for pixel in image[i][:, core[i, k]].T:
                ink = (pixel - fog * corner[i]) / (1 - fog)
                clear.setdefault(COLOURS[scene.colour[i, k]], []).append(ink)
    assert set(clear) == set(COLOURS)
    centres = torch.stack([torch.stack(clear[name]).median(0).values for name in COLOURS])
    for name, centre in zip(COLOURS, centres, strict=True):
        assert (torch.stack(clear[name]) - centre).abs().max() < 0.01
    assert (torch.cdist(centres, centres) + 9 * torch.eye(6)).min() > 0.5


def test_captions_say_what_is_there(data):
    scene, caption = layout(INDEX), data.values["caption"]
    for i, (text, said) in enumerate(zip(words(caption), parse(caption), strict=True)):
        objects = tuple(
            (SIZES[scene.size[i, k]], COLOURS[scene.colour[i, k]], SHAPES[scene.shape[i, k]])
            for k in range(int(scene.count[i]))
        )
        assert said == Scene(BACKGROUNDS[scene.background[i]], objects)
        assert text == " ".join([said.background, *(word for o in objects for word in o)])
        assert parse(text) == [said]
        radius = scene.radius[i][: len(objects)]
        assert [("small", "large")[int(r > 0.17)] for r in radius] == [o[0] for o in objects]


@pytest.mark.parametrize(
    "text",
    [
        *("", "grey", "mauve small red circle", "grey small red", "small red circle", "grey red small circle"),
        *("grey small red circle large", "grey small red circle " * 2, "grey" + " small red circle" * 4),
    ],
)
def test_what_is_no_caption_is_parsed_as_nothing(text):
    assert parse([text, "black large blue square"]) == [None, Scene("black", (("large", "blue", "square"),))]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("grey small red circle large blue square", "grey small red circle large blue square"),
        (
            "A small red circle left of a large blue square, on a Grey background.",
            "grey small red circle large blue square",
        ),
        ("on black, large cyan triangle", "black large cyan triangle"),
    ],
)
def test_sentences_are_read_as_captions(text, caption):
    assert read_caption(text) == caption
    assert parse(read_caption(text)) != [None]


def test_what_a_sentence_leaves_out_is_drawn_evenly_and_repeats_by_seed():
    """600 seeds, every share within 4 standard errors."""
    found = [read_caption("a red circle left of a square", seed) for seed in range(600)]
    assert found[7] == read_caption("a red circle left of a square", 7)
    scenes = parse(found)
    assert all(len(s.objects) == 2 and s.objects[0][1:] == ("red", "circle") and s.objects[1][2] == "square" for s in scenes)
    assert read_caption("on black, large cyan triangle", 3) == "black large cyan triangle"
    for names, said in (
        (BACKGROUNDS, [s.background for s in scenes]),
        (SIZES, [s.objects[0][0] for s in scenes]),
        (COLOURS, [s.objects[1][1] for s in scenes]),
    ):
        share = 1 / len(names)
        for name in names:
            assert abs(said.count(name) / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5


@pytest.mark.parametrize(
    "text",
    [
        *("a red left of a blue square", "a small red thing", "grey", "", "small red circle left of grey"),
        *("grey left of small red circle", "grey small red circle left of", "grey small red circle small red square right"),
        *("grey small red circle on white", "grey" + " small red circle" * 4, "grey small mauve circle"),
    ],
)
def test_what_is_no_scene_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"is no caption of this world, .* size \(small, large\) .* 'a small red"):
        read_caption(text)


def test_padding_belongs_at_the_end():
    token = {word: k for k, word in enumerate(VOCABULARY)}
    one = [token[word] for word in ("grey", "small", "red", "circle")]
    good = torch.tensor([*one, 0, 0, 0, 0, 0, 0])
    assert parse(good) == [Scene("grey", (("small", "red", "circle"),))]
    bad = torch.tensor([[*one, 0, 0, 0, *one[1:]], [*one, one[1], 0, one[3], 0, 0, 0], [99, *one[1:], 0, 0, 0, 0, 0, 0]])
    assert parse(bad) == [None] * 3
    with pytest.raises(ValueError, match=r"tokens must be in 0\.\.15, got 0\.\.99"):
        words(bad)


def test_label_is_the_nearest_object(data):
    """The object whose pixels have the least depth, from the picture; its name from the caption."""
    depth, masks, caption = (data.values[name] for name in ("depth", "masks", "caption"))
    nearest = torch.where(masks, depth, 2.0).flatten(2).amin(2).argmin(1)
    for i, said in enumerate(parse(caption)):
        _, colour, shape = said.objects[nearest[i]]
        assert data.names[data.values["label"][i]] == f"{colour} {shape}"


def test_the_sketch_is_the_edge_of_what_is_seen(data):
    """Lines have another owner within 2 pixels (3 at the tips of triangles); every edge has a bright pixel beside it."""
    masks, sketch = data.values["masks"], data.values["sketch"]
    owner = torch.cat([masks, ~masks.any(1, keepdim=True)], 1).float().argmax(1)[:, None].float()
    owner, sketch = (torch.nn.functional.pad(x, (3, 3, 3, 3), value=v) for x, v in ((owner, 3), (sketch, -1)))

    def reach(value, radius):
        return torch.nn.functional.max_pool2d(value, 2 * radius + 1, 1, radius)

    for radius, share in ((2, 1e-2), (3, 0)):
        near_edge = reach(owner, radius) + reach(-owner, radius) > 0
        assert ((sketch > 0) & ~near_edge).sum() <= share * (sketch > 0).sum()
    edge = reach(owner, 1) + reach(-owner, 1) > 0
    bright = reach(sketch, 1) > -0.4
    assert (edge & ~bright).sum() <= 1e-3 * edge.sum()
    assert 0.03 < (sketch > 0).float().mean() < 0.4


@given(seed=st.integers(0, 10_000), size=st.integers(2, 9))
def test_a_palette_image_is_read_back_even_with_noise(seed, size):
    g = torch.Generator().manual_seed(seed)
    segmentation = torch.randint(0, 4, (3, size, size), generator=g)
    image = palette(segmentation)
    assert image.shape == (3, 3, size, size)
    assert image.abs().max() == 1
    assert torch.equal(unpalette(image), segmentation)
    noise = 2 * torch.rand(image.shape, generator=g) - 1  # less than half of the distance in every direction
    assert torch.equal(unpalette(image + 0.8 * noise), segmentation)


def test_unpalette_takes_the_nearest_colour():
    image, colours = (
        torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
        palette(torch.arange(4)[None, None]),
    )
    distances = torch.cdist(image.movedim(1, -1).reshape(-1, 3), colours[0, :, 0].T)
    assert torch.equal(unpalette(image).flatten(), distances.argmin(1))


def test_night_is_a_function_of_the_day(data):
    assert torch.equal(night(data.values["image"]), data.values["night"])


def test_day_can_be_had_back_from_night_but_not_by_one_colour_matrix(data):
    """Least squares in |night(day) - night|, without rounding, finds the day; the best affine map of colours does not."""
    day, dark = data.values["image"][:60], data.values["night"][:60]
    guess = torch.zeros_like(day).requires_grad_()
    optimizer = torch.optim.LBFGS([guess], max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (night(guess, rounded=False) - dark).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert (guess - day).square().mean().sqrt() < 0.03
    x = torch.cat([dark, torch.ones_like(dark[:, :1])], 1).movedim(1, -1).reshape(-1, 4)
    y = day.movedim(1, -1).reshape(-1, 3)
    rest = y - x @ torch.linalg.lstsq(x, y).solution
    assert rest.square().mean().sqrt() > 0.15


def test_night_is_darker_and_bluer_and_glows(data):
    day, dark = data.values["image"], data.values["night"]
    assert (dark.mean() < day.mean() - 0.2).item()
    assert dark[:, 2].mean() > dark[:, 0].mean() + 0.1
    lone = [
        i for i, said in enumerate(parse(data.values["caption"])) if said.background == "black" and len(said.objects) == 1
    ]
    s = day.shape[-1]
    for i in lone:
        around = torch.nn.functional.max_pool2d(data.values["masks"][i].float(), s // 4 + 1, 1, s // 8).any(0)
        plain = (day[i] == day[i, :, :1, :1]).all(0)
        bare = night(day[i, :, :1, :1].expand(3, s, s)[None])[0]
        assert (dark[i] - bare).amax(0)[around & plain].max() > 0.02


def test_counts_are_uniform():
    """Number of objects, background, and shape, colour, size of the nearest: within 4 standard errors; 20,000 scenes."""
    n, scene = 20_000, layout(range(20_000))
    rows = torch.arange(n), scene.depth.argmin(1)
    draws = (
        (scene.count - 1, 3),
        (scene.background, 4),
        (scene.shape[rows], 3),
        (scene.colour[rows], 6),
        (scene.size[rows], 2),
    )
    for values, k in draws:
        share = values.bincount(minlength=k) / n
        assert (share - 1 / k).abs().max() < 4 * math.sqrt((1 - 1 / k) / k / n)
    three = scene.depth[scene.count == 3].argmin(1).bincount() / (scene.count == 3).sum()
    assert (three - 1 / 3).abs().max() < 4 * math.sqrt(2 / 9 / (n / 3))


def test_fields_of_a_scene_do_not_hang_together():
    """Correlations of neighbouring scenes and of fields within one are below 4.5 / sqrt(N)."""
    n, scene = 20_000, layout(range(20_001))
    columns = [scene.count, scene.background, scene.shape[:, 0], scene.colour[:, 0], scene.size[:, 0], scene.y[:, 0]]
    x = torch.stack(columns).double()
    both = torch.corrcoef(torch.cat([x[:, :-1], x[:, 1:]])) - torch.eye(12)
    both[[2, 4, 5, 8, 10, 11], :] *= 0  # y keeps a shape of a size inside: those depend on each other
    assert both[:, [0, 1, 3, 6, 7, 9]].abs().max() < 4.5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, r"split must be one of \('train', 'test'\), got 'valid'"),
        ({"size": 20}, "size must be a multiple of 8, at least 16, got 20"),
        ({"size": 8}, "at least 16, got 8"),
        ({"n": 0}, r"n must be in 1\.\.1000000000, got 0"),
        ({"modalities": ["image", "sound"]}, r"modalities must be some of \('image', .* got \['image', 'sound'\]"),
        ({"modalities": []}, "modalities must be some of"),
        ({"modalities": "image"}, "modalities must be some of .* got 'image'"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        shapes(**arguments)


@pytest.mark.parametrize("index", [[], [-1], [[1, 2]]])
def test_indices_that_are_none_are_refused(index):
    with pytest.raises(ValueError, match=r"index must be some numbers >= 0 in a row, got tensor\("):
        render(index, 16)


@pytest.mark.parametrize(
    ("n", "objects", "message"), [(5, 4, r"objects must be one of \(None, 1, 2, 3\), got 4"), (10**8, 1, r"1\.\.10000000")]
)
def test_bad_numbers_of_scenes_and_objects_are_refused(n, objects, message):
    with pytest.raises(ValueError, match=message):
        numbers("test", n, objects=objects)
