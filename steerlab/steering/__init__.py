"""What we write: `steer`, `generate` and `score` under one plan."""

from steerlab.steering.generate import Generations as Generations
from steerlab.steering.request import Request as Request
from steerlab.steering.steer import Run as Run
from steerlab.steering.steer import first_logits as first_logits
from steerlab.steering.steer import generate as generate
from steerlab.steering.steer import score as score
from steerlab.steering.steer import steer as steer
