import pytest

from mtdiff.comparison import Difference
from mtdiff.experiments.report import bounds, colours, findings, guidances, heads, inpaintings, markdown


def test_a_table_has_a_row_for_each_variant_and_says_what_was_not_measured():
    line = {
        "agreement": {"mean": 0.98765, "stderr": 0.004, "n": 3},
        "frechet_pixels": {"mean": 0.456, "stderr": None, "n": 1},
    }
    head = {"mean": 0.99, "stderr": None, "n": 1}
    results = [
        {"experiment": "image-label", "variants": {"a": {"joint": line, "head_accuracy": head}}},
        {"experiment": "image-label", "variants": {"b": {"joint": line, "head_accuracy": head}}},
    ]
    rows = markdown(results).splitlines()
    assert len(rows) == 4
    assert rows[2] == "| a | 0.988 ± 0.004 | - | 0.46 | - | - | - | 0.990 |"
    assert len({row.count("|") for row in rows}) == 1


def test_bounds_have_a_row_for_each_variant_that_has_one():
    def entry(mean):
        return {"mean": mean, "stderr": 0.5, "n": 3}

    both = {key: entry(-k) for k, key in enumerate(("image", "label_given_image", "sum", "joint"))}
    both["image_bits_per_dim"] = alone = entry(2.25)
    results = [
        {"variants": {"a": {"bound": both}}},
        {"variants": {"b": {"bound": {"image": entry(-3.0), "image_bits_per_dim": alone}}, "c": {}}},
    ]
    rows = bounds(results).splitlines()
    assert rows[2:] == [
        "| a | 2.250 ± 0.500 | 0.00 ± 0.50 | -1.00 ± 0.50 | -2.00 ± 0.50 | -3.00 ± 0.50 |",
        "| b | 2.250 ± 0.500 | -3.00 ± 0.50 | - | - | - |",
    ]


def number(mean, stderr=0.01):
    return {"mean": mean, "stderr": stderr, "n": 3}


def test_transitions_show_similarity_where_it_is_determined_and_scenes_elsewhere():
    metrics = {
        "day to night": {"psnr": number(30.04), "ssim": number(0.9)},
        "sketch to day": {"scene": number(0.8), "features": number(12.0), "colours": number(5.0)},
        "bound": {"day to night": number(1.0)},
    }
    rows = markdown([{"experiment": "image-transition", "variants": {"transition": metrics}}]).splitlines()
    assert rows[0] == "| variant | day to night | sketch to day |"
    assert rows[2] == "| transition | 0.900 ± 0.010 / 30.0 ± 0.0 | 0.800 ± 0.010 / 12.0 ± 0.0 |"


def test_answers_have_a_column_for_each_task_and_a_dash_where_a_variant_was_not_taught_it():
    metrics = {"depth": {"rmse": number(0.5), "delta": number(0.9)}, "instances": {"quality": number(0.4)}}
    both = {"generalist": metrics, "generator": {"alone": {"features": number(9.0)}}}
    rows = markdown([{"experiment": "dense", "variants": both}]).splitlines()
    assert rows[2] == "| generalist | 0.500 ± 0.010 / 0.900 ± 0.010 | - | 0.400 ± 0.010 | - | - |"
    assert rows[3] == "| generator | - | - | - | - | 9.0 ± 0.0 |"


def test_inpaintings_have_a_column_for_each_way_and_a_dash_where_a_model_has_it_not():
    way = {"0.5": {"psnr": number(20.0), "ssim": number(0.7)}, "0.9": {"psnr": number(9.0), "ssim": number(0.1)}}
    both = {"alone": {"features": number(3.0)}, "joint": {"features": number(4.0)}, "told": way}
    results = [
        {"experiment": "masked-image", "variants": {"masked": both}},
        {"experiment": "masked-image", "variants": {"plain": {"alone": {"features": number(2.0)}, "repaint": way}}},
    ]
    rows = markdown(results).splitlines()
    assert rows[0] == "| variant | alone | joint | told | repaint |"
    assert rows[3] == "| plain | 2.0 ± 0.0 | - | - | 20.0 ± 0.0 / 0.700 ± 0.010 |"
    assert "9.0 ± 0.0" in inpaintings(results, "0.9")


def test_results_of_different_experiments_are_no_table():
    with pytest.raises(ValueError, match=r"one experiment, got \['image-label', 'masked-image'\]"):
        markdown([{"experiment": "image-label", "variants": {}}, {"experiment": "masked-image", "variants": {}}])


def test_heads_have_a_row_for_each_variant_that_has_one():
    keys = ("accuracy", "nats", "calibration_error", "temperature", "nats_scaled", "calibration_error_scaled")
    head = {key: number(k / 10) for k, key in enumerate(keys)}
    rows = heads([{"variants": {"a": {"head": head}, "b": {}}}]).splitlines()
    assert rows[2:] == ["| a | " + " | ".join(f"{k / 10:.3f} ± 0.010" for k in range(6)) + " |"]


def test_a_temperature_at_the_end_of_the_search_is_listed_and_not_averaged():
    keys = ("accuracy", "nats", "calibration_error", "temperature", "nats_scaled", "calibration_error_scaled")
    head = {key: number(0.5) for key in keys}
    for values, cell in (
        ((0.01, 0.106093, 0.191574), "≤ 0.01, 0.106, 0.192"),
        ((100.0, 0.0100001), "≥ 100, ≤ 0.01"),
        ((0.011, 90.0), "0.500 ± 0.010"),
    ):
        runs = [{"variant": "a", "metrics": {"head": {"temperature": value}}} for value in values]
        runs.append({"variant": "b", "metrics": {"head": {"temperature": 0.01}}})
        row = heads([{"variants": {"a": {"head": head}}, "runs": runs}]).splitlines()[2]
        assert row.split(" | ")[4] == cell


def test_guidances_have_a_row_for_each_scale():
    line = {key: number(0.5) for key in ("agreement", "features", "precision", "recall")}
    rows = guidances([{"variants": {"a": {"guidance": {"1.0": line, "2.0": line}}, "b": {}}}]).splitlines()
    assert rows[2] == "| a | 1.0 | 0.500 ± 0.010 | 0.50 ± 0.01 | 0.500 ± 0.010 | 0.500 ± 0.010 |"
    assert len(rows) == 4


def test_a_model_that_is_only_told_stands_in_the_table_by_its_guidance_of_one():
    line = {"agreement": number(0.9), "frechet_pixels": number(0.4)}
    results = [{"experiment": "image-label", "variants": {"a": {"guidance": {"1.0": line}}}}]
    assert markdown(results).splitlines()[2] == "| a | - | - | - | - | - | 0.900 ± 0.010 / 0.40 ± 0.01 | - |"


def test_planted_colours_have_a_row_for_each_share():
    result = {"experiment": "image-label", "data": "planted60"}
    result["variants"] = {"fade-in": {"joint": {"own": number(0.61)}, "guidance 1.0": {"own": number(0.7)}}}
    rows = colours([result]).splitlines()
    assert rows == [
        "| planted | variant | joint | guidance 1.0 |",
        "| --- | --- | --- | --- |",
        "| 60% | fade-in | 0.610 ± 0.010 | 0.700 ± 0.010 |",
    ]
    assert markdown([result]).splitlines() == rows


def test_representations_have_a_dash_for_what_a_variant_has_not():
    full = {
        "alone": {"features": number(30.0)},
        "guidance": {"1.0": {"features": number(28.0)}, "2.0": {"features": number(29.0)}},
        "given": {"features": number(20.0), "retrieval": number(0.3)},
        "read": {"0": number(0.9), "500": number(0.0)},
        "drawn": {"label": number(0.25)},
    }
    result = {"experiment": "image-representation", "data": "shapes16"}
    result["variants"] = {"lifted": full, "image-only": {"alone": full["alone"]}}
    rows = markdown([result]).splitlines()
    assert rows[0] == "| variant | alone | joint | guidance 2.0 | given | found again | read | belongs together |"
    ends = "20.0 ± 0.0 | 0.300 ± 0.010 | 0.900 ± 0.010 | 0.250 ± 0.010 |"
    assert rows[2] == "| lifted | 30.0 ± 0.0 | 28.0 ± 0.0 | 29.0 ± 0.0 | " + ends
    assert rows[3] == "| image-only | 30.0 ± 0.0 | - | - | - | - | - | - |"


def test_a_share_that_was_not_measured_is_refused():
    way = {"0.5": {"psnr": number(20.0), "ssim": number(0.7)}}
    with pytest.raises(KeyError, match=r"share must be one of \['0.5'\], got '0.4'"):
        inpaintings([{"variants": {"masked": {"told": way}}}], "0.4")


def test_findings_are_the_clear_differences_by_whether_they_are_better():
    clear_up, clear_down, unclear = Difference(2.0, 0.1, 3), Difference(-1.5, 0.1, 3), Difference(9.0, 9.0, 3)
    found = {"distance": {"a": clear_up, "b": clear_down, "c": unclear}, "accuracy": {"a": clear_up, "d": unclear}}
    assert findings(found, less={"distance"}).splitlines() == [
        "- *distance*: clearly better: b (-1.5 ± 0.1)",
        "- *distance*: clearly worse: a (+2 ± 0.1)",
        "- *accuracy*: clearly better: a (+2 ± 0.1)",
        "",
        "3 of 5 differences are clear; by chance alone about 0.2 would be.",
    ]


def test_one_seed_has_no_findings():
    assert findings({"accuracy": {"a": Difference(2.0, None, 1)}}).strip().startswith("0 of 1 differences are clear")
