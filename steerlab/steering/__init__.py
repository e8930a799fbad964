"""Steering: `steer`, `generate`, `score` and `next_token_logits` under the edits of one or several steerers."""

from steerlab.steering.bake import bake as bake
from steerlab.steering.generate import Generations as Generations
from steerlab.steering.generate import generate as generate
from steerlab.steering.requests import Request as Request
from steerlab.steering.score import next_token_logits as next_token_logits
from steerlab.steering.score import score as score
from steerlab.steering.steer import Run as Run
from steerlab.steering.steer import steer as steer
