"""Find, predict and apply steering vectors in language models, one input at a time.

>>> model = steerlab.load("smollm2")
>>> pairs = steerlab.data.demo_set()
>>> acts = steerlab.capture(model, pairs, layers=[16])
>>> l2s = steerlab.L2S(16, zero=["answer"]).fit(acts)
>>> with steerlab.steer(model, l2s, alpha=1.0) as run:
...     texts = run.generate(pairs)
"""

from steerlab import data as data
from steerlab._support.errors import ActivationError as ActivationError
from steerlab._support.errors import DataError as DataError
from steerlab._support.errors import EncodingError as EncodingError
from steerlab._support.errors import LayoutError as LayoutError
from steerlab._support.errors import LoadError as LoadError
from steerlab._support.errors import MismatchError as MismatchError
from steerlab._support.errors import OutOfMemory as OutOfMemory
from steerlab._support.errors import PositionError as PositionError
from steerlab._support.errors import RemoteError as RemoteError
from steerlab._support.errors import SteeringError as SteeringError
from steerlab._support.errors import SteerlabError as SteerlabError
from steerlab.analysis.sweep import sweep as sweep
from steerlab.capture import Activations as Activations
from steerlab.capture import Store as Store
from steerlab.capture import capture as capture
from steerlab.data import Contrast as Contrast
from steerlab.data import Example as Example
from steerlab.methods import CONFST as CONFST
from steerlab.methods import L2S as L2S
from steerlab.methods import P2S as P2S
from steerlab.methods import AdaSteer as AdaSteer
from steerlab.methods import AlphaSteer as AlphaSteer
from steerlab.methods import ConditionVector as ConditionVector
from steerlab.methods import Detector as Detector
from steerlab.methods import Gated as Gated
from steerlab.methods import LinearProbe as LinearProbe
from steerlab.methods import MeanDifference as MeanDifference
from steerlab.methods import NullSpaceGate as NullSpaceGate
from steerlab.methods import Prompt as Prompt
from steerlab.methods import RandomDirection as RandomDirection
from steerlab.methods import Steerer as Steerer
from steerlab.methods import TaskTracker as TaskTracker
from steerlab.methods import TripletProbe as TripletProbe
from steerlab.methods import load_detector as load_detector
from steerlab.methods import load_steerer as load_steerer
from steerlab.methods import save as save
from steerlab.models.job import Job as Job
from steerlab.models.loading import load as load
from steerlab.models.model import Model as Model
from steerlab.models.positions import Match as Match
from steerlab.models.positions import describe_positions as describe_positions
from steerlab.models.positions import positions_table as positions_table
from steerlab.models.sites import Site as Site
from steerlab.steering import Generations as Generations
from steerlab.steering import Request as Request
from steerlab.steering import generate as generate
from steerlab.steering import next_token_logits as next_token_logits
from steerlab.steering import score as score
from steerlab.steering import steer as steer
