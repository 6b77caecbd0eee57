"""A program: what the strategy makes of libtpu flags, before and after something has used the devices."""

import json
import os

from coda.xla import XLASPMDStrategy
from coda.xla.flags import VARIABLE, Flags

FLAGS: Flags = {"xla_tpu_scoped_vmem_limit_kib": 98304, "xla_enable_async_all_gather": True}


def refused(flags: Flags) -> str:
    try:
        XLASPMDStrategy(libtpu_flags=flags)
    except ValueError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    os.environ[VARIABLE] = "--xla_tpu_scoped_vmem_limit_kib=1 --megascale_port=7"
    dashes, spaces = refused({"--xla_enable_async_all_gather": True}), refused({"xla_dump_to": "my folder"})
    XLASPMDStrategy(libtpu_flags=FLAGS)
    found = os.environ[VARIABLE].split()
    late = refused(FLAGS)
    print("RESULT" + json.dumps({"found": found, "dashes": dashes, "spaces": spaces, "late": late}))
