"""What we learn: one module per method, all of them a `Steerer` or a `Detector`."""

from steerlab.methods._codec import savable
from steerlab.methods.adasteer import AdaSteer
from steerlab.methods.adasteer_reference import RELEASED_ADASTEER, adasteer_from_reference
from steerlab.methods.alphasteer import AlphaSteer
from steerlab.methods.alphasteer_reference import PUBLISHED_RATIOS, reference_directions
from steerlab.methods.artefact import load_detector, load_steerer, save
from steerlab.methods.base import Context, Detector, Read, Shift, Steerer, provenance, threshold_at
from steerlab.methods.condition import ConditionVector
from steerlab.methods.confst import CONFST
from steerlab.methods.gated import Gated
from steerlab.methods.l2s import L2S
from steerlab.methods.l2s_net import SteeringNet, load_reference
from steerlab.methods.l2s_recipe import PAPER, RELEASED_POPE, RELEASED_SAFETY, Recipe
from steerlab.methods.l2s_train import train_net
from steerlab.methods.mean import MeanDifference
from steerlab.methods.null_space import NullSpaceGate
from steerlab.methods.p2s import P2S
from steerlab.methods.probe import LinearProbe
from steerlab.methods.prompt import SAFETY_INSTRUCTION, Prompt
from steerlab.methods.ramps import Logistic, Ramp, fit_logistic
from steerlab.methods.random import RandomDirection
from steerlab.methods.tasktracker import TaskTracker
from steerlab.methods.triplet import TripletProbe

__all__ = [
    "CONFST", "L2S", "P2S", "PAPER", "PUBLISHED_RATIOS", "RELEASED_ADASTEER", "RELEASED_POPE", "RELEASED_SAFETY",
    "SAFETY_INSTRUCTION", "AdaSteer", "AlphaSteer", "ConditionVector", "Context", "Detector", "Gated",
    "LinearProbe", "Logistic", "MeanDifference", "NullSpaceGate", "Prompt", "Ramp", "RandomDirection", "Read",
    "Recipe", "Shift", "Steerer", "SteeringNet", "TaskTracker", "TripletProbe", "adasteer_from_reference",
    "fit_logistic", "load_detector", "load_reference", "load_steerer", "provenance", "reference_directions",
    "savable", "save", "threshold_at", "train_net",
]  # fmt: skip
