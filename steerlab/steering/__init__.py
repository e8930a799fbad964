"""Steering: `steer`, `generate`, `score` and `next_token_logits` under the edits of one or several steerers."""

from steerlab.steering.bake import bake
from steerlab.steering.generate import Generations, generate
from steerlab.steering.requests import Request
from steerlab.steering.score import next_token_logits, score
from steerlab.steering.steer import Run, steer

__all__ = ["Generations", "Request", "Run", "bake", "generate", "next_token_logits", "score", "steer"]
