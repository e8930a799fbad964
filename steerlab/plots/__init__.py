"""Functions that draw a data frame and return matplotlib `Axes`; none of them runs a model."""

from steerlab.plots.bars import method_bars
from steerlab.plots.lines import geometry_lines, probe_gap_lines, propensity_lines
from steerlab.plots.similarity import cosine_heatmap, layer_heatmap, map_scatter
from steerlab.plots.slopes import slope_distributions
from steerlab.plots.style import METHODS, method_style, save, style, width
from steerlab.plots.summary import METRICS, MetricStyle, metric_style, read_summary, summary_frame
from steerlab.plots.sweep import layer_range_lines, sweep_heatmap

__all__ = [
    "METHODS",
    "METRICS",
    "MetricStyle",
    "cosine_heatmap",
    "geometry_lines",
    "layer_heatmap",
    "layer_range_lines",
    "map_scatter",
    "method_bars",
    "method_style",
    "metric_style",
    "probe_gap_lines",
    "propensity_lines",
    "read_summary",
    "save",
    "slope_distributions",
    "style",
    "summary_frame",
    "sweep_heatmap",
    "width",
]
