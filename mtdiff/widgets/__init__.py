"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

# ruff: noqa: F401, I001 (names that are found here, listed once)
from mtdiff.widgets.base import Board, Verdict
from mtdiff.widgets.canvas import Canvas
from mtdiff.widgets.experiments import (
    amplification_board, any_board, class_sampler, inpainting_board, representation_board, transition_board,
    draw_amplification, draw_any, draw_between, draw_class, draw_inpainting, draw_transition,
)  # fmt: skip
from mtdiff.widgets.scaling import draw_plan, plan, plan_board
from mtdiff.widgets.theory import (
    bound_board, cloud_slider, curve_bender, gap_board, noised_density_slider, rule_board,
    draw_bound, draw_cloud, draw_curve, draw_gap, draw_noised_density, draw_rules,
)  # fmt: skip
