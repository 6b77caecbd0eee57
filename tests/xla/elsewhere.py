"""A program: goes on from a plain checkpoint without XLA."""

import json
import sys

from tests.xla.fits import fit

if __name__ == "__main__":
    print("RESULT" + json.dumps(fit(None, max_steps=8, ckpt_path=sys.argv[2])))
