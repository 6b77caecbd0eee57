"""Independent masking: the plain absorbing-state corruption."""

from torch import Tensor

from coda.masking.base import Draft, MaskingStrategy


class RandomMasking(MaskingStrategy):
    """Mask every maskable token independently with probability t (arXiv 2510.03270, eq. 6)."""

    def transform(self, draft: Draft, progress: Tensor, pad_token_id: int | None) -> None:
        """Leave the draft as it is."""
