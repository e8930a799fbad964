"""Frame in, matplotlib Axes out; nothing here computes an estimate or runs a model."""

from steerlab.plots.bars import method_bars
from steerlab.plots.frontier import find_cell, pareto_front, trade_off
from steerlab.plots.gallery import Shown, gallery
from steerlab.plots.geometry import geometry_dots, geometry_lines
from steerlab.plots.headroom import headroom_lines
from steerlab.plots.script import figure_script
from steerlab.plots.similarity import cosine_heatmap, layer_heatmap, map_scatter
from steerlab.plots.slopes import slope_distributions
from steerlab.plots.steerability import propensity_lines
from steerlab.plots.strength import strength_curves
from steerlab.plots.style import METHODS, MethodStyle, method_style, save, style, width
from steerlab.plots.summary import MEASURES, Measure, measure, read_summary, summary_frame

__all__ = [
    "MEASURES",
    "METHODS",
    "Measure",
    "MethodStyle",
    "Shown",
    "cosine_heatmap",
    "figure_script",
    "find_cell",
    "gallery",
    "geometry_dots",
    "geometry_lines",
    "headroom_lines",
    "layer_heatmap",
    "map_scatter",
    "measure",
    "method_bars",
    "method_style",
    "pareto_front",
    "propensity_lines",
    "read_summary",
    "save",
    "slope_distributions",
    "strength_curves",
    "style",
    "summary_frame",
    "trade_off",
    "width",
]
