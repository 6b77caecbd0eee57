"""Load an exported folder with transformers alone: ``python elsewhere.py FOLDER QUESTION ANSWER``.

Run by :mod:`coda.release.verify` in a process of its own. ``QUESTION`` holds token ids and a text; ``ANSWER`` gets the
logits of every class that transformers finds for the folder, and what its tokenizer makes of the text.
"""

import sys

ABSENT = ("coda", "callbacks", "lightning", "lightning_fabric", "pytorch_lightning", "peft")


def main(folder: str, question: str, answer: str) -> None:
    """Answer with everything that can be compared with the source."""
    import torch
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    asked = torch.load(question, weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    result = {"tokens": tokenizer(asked["text"])["input_ids"], "mask": tokenizer.mask_token_id}
    for automatic in (AutoModel, AutoModelForMaskedLM):
        model = automatic.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            result[automatic.__name__] = model(asked["ids"]).logits
        del model
    torch.save(result, answer)


if __name__ == "__main__":
    sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]  # importing one of them fails
    main(*sys.argv[1:])
