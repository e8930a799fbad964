"""Models that read vectors: objects described by numbers become embeddings at a place of the prompt."""

from steerlab.models.vectors.encoder import DRIVING_KINDS as DRIVING_KINDS
from steerlab.models.vectors.encoder import ObjectKind as ObjectKind
from steerlab.models.vectors.encoder import VectorEncoder as VectorEncoder
from steerlab.models.vectors.model import VectorLM as VectorLM
from steerlab.models.vectors.model import VectorLMConfig as VectorLMConfig
from steerlab.models.vectors.processor import VectorProcessor as VectorProcessor
from steerlab.models.vectors.processor import with_vectors as with_vectors
