"""`capture`, `Activations` (labeled hidden states) and `Store` (activations on disk)."""

from steerlab.capture.activations import Activations as Activations
from steerlab.capture.capture import capture as capture
from steerlab.capture.store import Store as Store
