"""Functions that draw a data frame and return matplotlib `Axes`; none of them runs a model."""

from steerlab._support.extras import require

require("steerlab.plots", "plots", "matplotlib", "seaborn")  # before the imports below, which would not say it

from steerlab.plots.bars import method_bars
from steerlab.plots.dependence import dependence_bars
from steerlab.plots.lens import lens_heatmap, patch_heatmap
from steerlab.plots.lines import geometry_lines, propensity_lines
from steerlab.plots.page import Page, page
from steerlab.plots.similarity import cosine_heatmap, layer_heatmap, map_scatter
from steerlab.plots.slopes import slope_distributions
from steerlab.plots.style import METHODS, method_style, save, style, width
from steerlab.plots.summary import METRICS, MetricStyle, metric_style, read_summary, summary_frame
from steerlab.plots.sweep import layer_range_lines, sweep_heatmap

__all__ = [
    "METHODS", "METRICS", "MetricStyle", "Page", "cosine_heatmap", "dependence_bars", "geometry_lines",
    "layer_heatmap", "layer_range_lines", "lens_heatmap", "map_scatter", "method_bars", "method_style",
    "metric_style", "page", "patch_heatmap", "propensity_lines", "read_summary", "save", "slope_distributions",
    "style", "summary_frame", "sweep_heatmap", "width",
]  # fmt: skip
