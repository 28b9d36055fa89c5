from mtdiff.experiments.report import markdown


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
