"""Steering methods and detectors: one module each, all of them a `Steerer` or a `Detector`."""

from steerlab.methods.adasteer.published import PUBLISHED_ADASTEER, PublishedAdaSteer
from steerlab.methods.adasteer.schedules import Logistic, Ramp, fit_schedule
from steerlab.methods.adasteer.steerer import AdaSteer
from steerlab.methods.alphasteer.detector import NullSpaceGate
from steerlab.methods.alphasteer.published import PUBLISHED_RATIOS, published_directions
from steerlab.methods.alphasteer.steerer import AlphaSteer
from steerlab.methods.base import Context, Detector, Intervention, RequiredActivation, Steerer, provenance, threshold_at
from steerlab.methods.concepts.dictionary import ConceptDictionary
from steerlab.methods.concepts.steering import ConceptSteering
from steerlab.methods.condition import ConditionVector
from steerlab.methods.confst import CONFST
from steerlab.methods.exchange import (
    from_easysteer,
    from_gguf,
    from_repeng,
    from_steering_vectors,
    from_vllm_lens,
    to_easysteer,
    to_gguf,
    to_hotwire,
    to_repeng,
    to_steering_vectors,
    to_vllm_lens,
)  # fmt: skip
from steerlab.methods.gated import Gated
from steerlab.methods.gradient import PUBLISHED_FIELDS, GradientField
from steerlab.methods.kts.config import KTS_RELEASED, KTSConfig, released_layers
from steerlab.methods.kts.objective import kl_divergence
from steerlab.methods.kts.train import kl_then_steer
from steerlab.methods.l2s.config import L2S_PAPER, L2S_RELEASED_POPE, L2S_RELEASED_SAFETY, TrainingConfig
from steerlab.methods.l2s.net import LinearMap, SteeringNet, load_published_net
from steerlab.methods.l2s.steerer import L2S
from steerlab.methods.l2s.train import train_net
from steerlab.methods.logistic import LogisticDirection
from steerlab.methods.mean import MeanDifference
from steerlab.methods.model_edit import ModelEdit
from steerlab.methods.nearest_neighbors import NearestNeighbors
from steerlab.methods.operation import Operation
from steerlab.methods.p2s import P2S
from steerlab.methods.pca import PCA
from steerlab.methods.probe import LinearProbe
from steerlab.methods.prompt import SAFETY_INSTRUCTION, Prompt
from steerlab.methods.random import RandomDirection
from steerlab.methods.routed_mean import RoutedMean
from steerlab.methods.sae import SAE, train_sae
from steerlab.methods.serialization import load_detector, load_steerer, savable, steerer_classes
from steerlab.methods.spherical import PUBLISHED_SPHERICAL, Spherical
from steerlab.methods.ssae import SSAE
from steerlab.methods.tasktracker.detector import TaskTracker
from steerlab.methods.tasktracker.triplet import TripletProbe
from steerlab.methods.vector import SteeringVector, added_vectors, as_steerer
from steerlab.methods.w2s import W2S
from steerlab.models.operators import Add, Clamp, Operator, ProjectOut, Replace, Rotate, Scale

__all__ = [
    "CONFST", "KTS_RELEASED", "L2S", "L2S_PAPER", "L2S_RELEASED_POPE", "L2S_RELEASED_SAFETY", "P2S", "PCA",
    "PUBLISHED_ADASTEER", "PUBLISHED_FIELDS", "PUBLISHED_RATIOS", "PUBLISHED_SPHERICAL", "SAE", "SAFETY_INSTRUCTION",
    "SSAE", "W2S",
    "AdaSteer", "Add", "AlphaSteer", "Clamp", "ConceptDictionary", "ConceptSteering", "ConditionVector", "Context",
    "Detector", "Gated", "GradientField", "Intervention", "KTSConfig", "LinearMap", "LinearProbe", "Logistic",
    "LogisticDirection", "MeanDifference", "ModelEdit", "NearestNeighbors", "NullSpaceGate", "Operation", "Operator",
    "ProjectOut", "Prompt", "PublishedAdaSteer", "Ramp", "RandomDirection", "Replace", "RequiredActivation", "Rotate",
    "RoutedMean", "Scale", "Spherical", "Steerer", "SteeringNet", "SteeringVector", "TaskTracker", "TrainingConfig",
    "TripletProbe", "added_vectors", "as_steerer", "fit_schedule", "from_easysteer", "from_gguf", "from_repeng",
    "from_steering_vectors", "from_vllm_lens", "kl_divergence", "kl_then_steer", "load_detector",
    "load_published_net", "load_steerer", "provenance", "published_directions", "released_layers", "savable",
    "steerer_classes", "threshold_at", "to_easysteer", "to_gguf", "to_hotwire", "to_repeng", "to_steering_vectors",
    "to_vllm_lens", "train_net", "train_sae",
]  # fmt: skip
