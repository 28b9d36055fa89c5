"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

# ruff: noqa: F401 (names that are found here, listed once)
from mtdiff.widgets.base import Board, Verdict
from mtdiff.widgets.experiments import (
    amplification_board,
    class_sampler,
    draw_amplification,
    draw_between,
    draw_class,
    draw_inpainting,
    draw_transition,
    inpainting_board,
    representation_board,
    transition_board,
)
from mtdiff.widgets.scaling import draw_plan, plan, plan_board
from mtdiff.widgets.theory import (
    bound_board,
    cloud_slider,
    curve_bender,
    draw_bound,
    draw_cloud,
    draw_curve,
    draw_gap,
    draw_noised_density,
    draw_rules,
    gap_board,
    noised_density_slider,
    rule_board,
)
