from mtdiff.experiments.report import bounds, markdown


def test_a_table_has_a_row_for_each_variant_and_says_what_was_not_measured():
    line = {
        "agreement": {"mean": 0.98765, "stderr": 0.004, "n": 3},
        "frechet_pixels": {"mean": 0.456, "stderr": None, "n": 1},
    }
    head = {"mean": 0.99, "stderr": None, "n": 1}
    results = [
        {"variants": {"a": {"joint": line, "head_accuracy": head}}},
        {"variants": {"b": {"joint": line, "head_accuracy": head}}},
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
