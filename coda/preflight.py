"""What is found out from configs and a tokenizer alone, before a corpus is tokenised and weights are read."""

from typing import Any

from coda.checkpoint import check_tokenizer, read_config
from coda.model import Backbone, PretrainedBackbone


def check_fit(data: Any, backbone: Backbone, shift: bool, init_from: str | None, resuming: bool) -> None:
    """Check that data, tokenizer and model fit each other.

    Args:
        data: The data module.
        backbone: The model to train.
        shift: That of the objective.
        init_from: Where the weights come from, if not from ``backbone``.
        resuming: Whether they come from a checkpoint of this very run.

    Raises:
        ValueError: Naming the setting.
    """
    if data.sequence_length > backbone.positions:
        raise ValueError(
            f"data.sequence_length is {data.sequence_length}, but the model has {backbone.positions} positions; shorten "
            "the rows or raise max_position_embeddings"
        )
    pretrained = backbone.path if isinstance(backbone, PretrainedBackbone) else None
    for setting, source in (("model.backbone", pretrained), ("model.init_from", init_from)):
        if source is None or resuming:
            continue
        try:
            check_tokenizer(source, data.tokenizer)
            theirs = read_config(source).shift
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from error
        if source == init_from and theirs != shift:
            raise ValueError(
                f"model.init_from: {source!r} was trained with shift {theirs}, but model.objective.shift is {shift}; set "
                f"it to {theirs}"
            )
