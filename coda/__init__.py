"""CoDA: adapt Qwen3 into a masked diffusion language model for code (arXiv 2510.03270)."""

import os

__version__ = "0.1.0"

# Where torch_xla is installed, transformers would import it, and it chooses its hardware by itself if nobody did.
os.environ.setdefault("USE_TORCH_XLA", "0")
