"""A child that writes down what its environment says of the trace."""

import os
import sys
from pathlib import Path

Path(sys.argv[1]).write_text(os.environ["TRACEPARENT"])
