"""Find, predict and apply steering vectors in language models, one input at a time.

>>> model = steerlab.load("smollm2")
>>> pairs = steerlab.data.demo_set()
>>> acts = steerlab.capture(model, pairs, layers=[16])
>>> l2s = steerlab.L2S(16, zero_behaviors=["answer"]).fit(acts)
>>> with steerlab.steer(model, l2s, alpha=1.0) as run:
...     texts = run.generate(pairs)
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("steerlab")
except PackageNotFoundError:  # a checkout on the path that is not installed
    __version__ = "unknown"
# the names are in `__init__.pyi`
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
