"""What looks at a loaded model: pages computed from it, a notebook widget, and a local server."""

from steerlab.live.doors import serve as serve
from steerlab.live.doors import widget as widget
from steerlab.live.pages import page_of as page_of
