"""One page to look at: a slider, texts side by side, a map of the sweep; a file, a notebook widget or a local server."""

from steerlab.plots.page.build import Page as Page
from steerlab.plots.page.build import page as page
from steerlab.plots.page.contract import check_contract as check_contract
