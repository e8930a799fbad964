"""Frame in, matplotlib Axes out; nothing here computes an estimate or runs a model."""

from steerlab.plots.bars import method_bars
from steerlab.plots.effect import effect_curves
from steerlab.plots.frontier import find_cell, pareto_front, trade_off
from steerlab.plots.gallery import Shown, gallery
from steerlab.plots.geometry import geometry_dots, geometry_lines
from steerlab.plots.headroom import headroom_lines
from steerlab.plots.layers import layer_lines
from steerlab.plots.placement import variance_bars
from steerlab.plots.script import figure_script
from steerlab.plots.shifts import shift_scatter
from steerlab.plots.similarity import cosine_heatmap, layer_heatmap, map_scatter
from steerlab.plots.slopes import slope_distributions
from steerlab.plots.steerability import propensity_lines
from steerlab.plots.strength import strength_curves
from steerlab.plots.style import METHODS, MethodStyle, method_style, save, style, width
from steerlab.plots.summary import MEASURES, Measure, measure, read_summary, summary_frame
from steerlab.plots.sweep import band_lines, sweep_heatmap

__all__ = [
    "MEASURES",
    "METHODS",
    "Measure",
    "MethodStyle",
    "Shown",
    "band_lines",
    "cosine_heatmap",
    "effect_curves",
    "figure_script",
    "find_cell",
    "gallery",
    "geometry_dots",
    "geometry_lines",
    "headroom_lines",
    "layer_heatmap",
    "layer_lines",
    "map_scatter",
    "measure",
    "method_bars",
    "method_style",
    "pareto_front",
    "propensity_lines",
    "read_summary",
    "save",
    "shift_scatter",
    "slope_distributions",
    "strength_curves",
    "style",
    "summary_frame",
    "sweep_heatmap",
    "trade_off",
    "variance_bars",
    "width",
]
