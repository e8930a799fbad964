"""Frame in, matplotlib Axes out; nothing here computes an estimate or runs a model."""

from steerlab.plots.bars import method_bars
from steerlab.plots.effect import effect_curves
from steerlab.plots.frontier import find_setting, pareto_front, trade_off
from steerlab.plots.geometry import geometry_dots, geometry_lines
from steerlab.plots.layers import layer_lines
from steerlab.plots.probe_gap import probe_gap_lines
from steerlab.plots.similarity import cosine_heatmap, layer_heatmap, map_scatter
from steerlab.plots.slopes import slope_distributions
from steerlab.plots.steerability import propensity_lines
from steerlab.plots.strength import strength_curves
from steerlab.plots.style import METHODS, MethodStyle, method_style, save, style, width
from steerlab.plots.summary import MEASURES, Measure, measure, read_summary, summary_frame
from steerlab.plots.sweep import layer_range_lines, sweep_heatmap

__all__ = [
    "MEASURES",
    "METHODS",
    "Measure",
    "MethodStyle",
    "cosine_heatmap",
    "effect_curves",
    "find_setting",
    "geometry_dots",
    "geometry_lines",
    "layer_heatmap",
    "layer_lines",
    "layer_range_lines",
    "map_scatter",
    "measure",
    "method_bars",
    "method_style",
    "pareto_front",
    "probe_gap_lines",
    "propensity_lines",
    "read_summary",
    "save",
    "slope_distributions",
    "strength_curves",
    "style",
    "summary_frame",
    "sweep_heatmap",
    "trade_off",
    "width",
]
