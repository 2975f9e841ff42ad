"""Benchmarks that train; their scripts import each other by bare names, as `python benchmarks/x.py` lets them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
