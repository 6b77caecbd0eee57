"""CoDA: adapt Qwen3 into a masked diffusion language model for code (arXiv 2510.03270)."""

import os

__version__ = "0.1.0"

# Errors alone: XLA warns of its partitioner at every compilation. It reads this when it is loaded, which transformers does.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
