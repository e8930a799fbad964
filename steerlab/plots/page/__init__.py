"""One page to look at: a strength slider, texts side by side, a map of the sweep; as a file, or on a live model."""

from steerlab.plots.page.build import Page as Page
from steerlab.plots.page.build import page as page
from steerlab.plots.page.contract import check_contract as check_contract
