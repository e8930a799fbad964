"""Steering methods and detectors: one module each, all of them a `Steerer` or a `Detector`."""

from steerlab.methods.adasteer.published import PUBLISHED_ADASTEER, PublishedAdaSteer
from steerlab.methods.adasteer.schedules import Logistic, Ramp, fit_schedule
from steerlab.methods.adasteer.steerer import AdaSteer
from steerlab.methods.alphasteer.detector import NullSpaceGate
from steerlab.methods.alphasteer.published import PUBLISHED_RATIOS, published_directions
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer, provenance, threshold_at
from steerlab.methods.condition import ConditionVector
from steerlab.methods.confst import CONFST
from steerlab.methods.gated import Gated
from steerlab.methods.l2s.config import L2S_PAPER, L2S_RELEASED_POPE, L2S_RELEASED_SAFETY, TrainingConfig
from steerlab.methods.l2s.net import SteeringNet, load_published_net
from steerlab.methods.l2s.steerer import L2S
from steerlab.methods.l2s.train import train_net
from steerlab.methods.mean import MeanDifference
from steerlab.methods.p2s import P2S
from steerlab.methods.probe import LinearProbe
from steerlab.methods.prompt import SAFETY_INSTRUCTION, Prompt
from steerlab.methods.random import RandomDirection
from steerlab.methods.serialization import load_detector, load_steerer, savable, save
from steerlab.methods.tasktracker.detector import TaskTracker
from steerlab.methods.tasktracker.triplet import TripletProbe

__all__ = [
    "CONFST", "L2S", "L2S_PAPER", "L2S_RELEASED_POPE", "L2S_RELEASED_SAFETY", "P2S", "PUBLISHED_ADASTEER",
    "PUBLISHED_RATIOS", "SAFETY_INSTRUCTION", "AdaSteer", "AlphaSteer", "ConditionVector", "Context", "Detector",
    "Gated", "Intervention", "LinearProbe", "Logistic", "MeanDifference", "NullSpaceGate", "Prompt",
    "PublishedAdaSteer", "Ramp", "RandomDirection", "RequiredActivation", "Steerer", "SteeringNet", "TaskTracker",
    "TrainingConfig", "TripletProbe", "fit_schedule", "load_detector", "load_published_net", "load_steerer",
    "provenance", "published_directions", "savable", "save", "threshold_at", "train_net",
]  # fmt: skip
