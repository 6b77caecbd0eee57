"""CoDA: adapt Qwen3 into a masked diffusion language model for code (arXiv 2510.03270)."""

__version__ = "0.1.0"
