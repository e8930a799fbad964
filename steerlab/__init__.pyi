"""What `steerlab` offers: each name is imported when it is first used, so `import steerlab` takes no time."""

from . import analysis as analysis
from . import data as data
from . import errors as errors
from . import live as live
from . import methods as methods
from . import metrics as metrics
from . import plots as plots
from .analysis.sweep import sweep as sweep
from .capturing import Activations as Activations
from .capturing import capture as capture
from .data import Contrast as Contrast
from .data import Example as Example
from .data import examples as examples
from .data import pairs as pairs
from .methods import L2S as L2S
from .methods import PCA as PCA
from .methods import LogisticDirection as LogisticDirection
from .methods import MeanDifference as MeanDifference
from .methods import SteeringVector as SteeringVector
from .methods import load_steerer as load_steerer
from .models.loading import load as load
from .models.sites import Site as Site
from .steering import Request as Request
from .steering import generate as generate
from .steering import next_token_logits as next_token_logits
from .steering import score as score
from .steering import steer as steer

__version__: str
