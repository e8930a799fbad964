"""What we write: `steer`, `generate` and `score` under one plan."""

from steerlab.steering.generate import Generations as Generations
from steerlab.steering.interventions import Request as Request
from steerlab.steering.steer import Run as Run
from steerlab.steering.steer import generate as generate
from steerlab.steering.steer import next_token_logits as next_token_logits
from steerlab.steering.steer import score as score
from steerlab.steering.steer import steer as steer
