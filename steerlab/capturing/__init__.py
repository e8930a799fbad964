"""`capture`, `capture_words`, `Activations` (labeled hidden states) and `Store` (activations on disk)."""

from steerlab.capturing.activations import Activations as Activations
from steerlab.capturing.capture import capture as capture
from steerlab.capturing.store import Store as Store
from steerlab.capturing.words import capture_words as capture_words
