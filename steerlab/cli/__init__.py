"""The command line: `steerlab COMMAND`.

A command is one function with typed parameters in `reading.py`, `writing.py`, `looking.py` or `talking.py`. What all
share is in one place each: options and errors in `app.py`; what a command says before it starts, and its answer, in
`job.py`; study files in `study.py`; what users write for data, vectors, layers and strengths in `inputs.py`.
"""

# each registers its commands
import steerlab.cli.looking
import steerlab.cli.reading
import steerlab.cli.talking
import steerlab.cli.writing  # noqa: F401
from steerlab.cli.app import main as main
