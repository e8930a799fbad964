"""`python -m steerlab.cli`, the same as `steerlab`."""

import sys

from steerlab.cli import main

sys.exit(main())
