"""What we read: sites, positions, `capture`, and activations whose rows know what they are."""

from steerlab.capture.activations import Activations as Activations
from steerlab.capture.capture import capture as capture
from steerlab.capture.capture import capture_to as capture_to
from steerlab.capture.store import Store as Store
