"""Functions that draw a data frame and return matplotlib `Axes`; none of them runs a model."""

from steerlab._support.extras import require

require("steerlab.plots", "plots", "matplotlib", "seaborn")  # before the imports below, which would not say it

from steerlab.plots.bars import method_bars as method_bars
from steerlab.plots.dependence import dependence_bars as dependence_bars
from steerlab.plots.lens import lens_heatmap as lens_heatmap
from steerlab.plots.lens import patch_heatmap as patch_heatmap
from steerlab.plots.lines import geometry_lines as geometry_lines
from steerlab.plots.lines import propensity_lines as propensity_lines
from steerlab.plots.page import Page as Page
from steerlab.plots.page import page as page
from steerlab.plots.similarity import cosine_heatmap as cosine_heatmap
from steerlab.plots.similarity import layer_heatmap as layer_heatmap
from steerlab.plots.similarity import map_scatter as map_scatter
from steerlab.plots.slopes import slope_distributions as slope_distributions
from steerlab.plots.style import METHODS as METHODS
from steerlab.plots.style import method_style as method_style
from steerlab.plots.style import save as save
from steerlab.plots.style import style as style
from steerlab.plots.style import width as width
from steerlab.plots.summary import METRICS as METRICS
from steerlab.plots.summary import MetricStyle as MetricStyle
from steerlab.plots.summary import metric_style as metric_style
from steerlab.plots.summary import read_summary as read_summary
from steerlab.plots.summary import summary_frame as summary_frame
from steerlab.plots.sweep import layer_range_lines as layer_range_lines
from steerlab.plots.sweep import sweep_heatmap as sweep_heatmap
