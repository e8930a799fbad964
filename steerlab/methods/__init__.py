"""What we learn: one module per method, all of them a `Steerer` or a `Detector`."""

from steerlab.methods.artefact import load_detector, load_steerer, save
from steerlab.methods.base import Context, Detector, Read, Shift, Steerer, threshold_at
from steerlab.methods.l2s import L2S
from steerlab.methods.l2s_net import SteeringNet, load_reference
from steerlab.methods.l2s_recipe import PAPER, RELEASED_POPE, RELEASED_SAFETY, Recipe
from steerlab.methods.l2s_train import train_net
from steerlab.methods.mean import MeanDifference
from steerlab.methods.p2s import P2S
from steerlab.methods.prompt import SAFETY_INSTRUCTION, Prompt
from steerlab.methods.random import RandomDirection

__all__ = [
    "L2S", "P2S", "PAPER", "RELEASED_POPE", "RELEASED_SAFETY", "SAFETY_INSTRUCTION", "Context", "Detector",
    "MeanDifference", "Prompt", "RandomDirection", "Read", "Recipe", "Shift", "Steerer", "SteeringNet",
    "load_detector", "load_reference", "load_steerer", "save", "threshold_at", "train_net",
]  # fmt: skip
