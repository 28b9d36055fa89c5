"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

from mtdiff.widgets.base import Verdict
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

__all__ = [
    "Verdict",
    "amplification_board",
    "bound_board",
    "class_sampler",
    "cloud_slider",
    "curve_bender",
    "draw_amplification",
    "draw_between",
    "draw_bound",
    "draw_class",
    "draw_cloud",
    "draw_curve",
    "draw_gap",
    "draw_inpainting",
    "draw_noised_density",
    "draw_plan",
    "draw_rules",
    "draw_transition",
    "gap_board",
    "inpainting_board",
    "noised_density_slider",
    "plan",
    "plan_board",
    "representation_board",
    "rule_board",
    "transition_board",
]
