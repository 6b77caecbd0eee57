"""Flags of libtpu, the TPU's compiler and runtime, which reads them from the environment when it starts."""

import os

VARIABLE = "LIBTPU_INIT_ARGS"
SETTING = "trainer.strategy.init_args.libtpu_flags"
Flags = dict[str, bool | int | str]


def set_libtpu_flags(flags: Flags) -> None:
    """Add ``flags`` to the environment's; they win over flags of the same name there, torch_xla's own among them.

    Args:
        flags: By name, without dashes: ``{"xla_tpu_scoped_vmem_limit_kib": 98304}``.

    Raises:
        ValueError: If a name has dashes or a value spaces, or if devices are in use already.
    """
    import torch_xla

    if not flags:
        return
    for name, value in flags.items():
        if name.startswith("-") or "=" in name or " " in f"{name}{value}":
            raise ValueError(
                f"{SETTING} has {name!r}: {value!r}; give names without dashes, such as xla_enable_async_all_gather: true"
            )
    if torch_xla._XLAC._xla_runtime_is_initialized():
        raise ValueError(
            f"{SETTING} comes too late: something has used the devices before the strategy was made; set the environment "
            f"variable {VARIABLE} instead"
        )
    kept = [flag for flag in os.environ.get(VARIABLE, "").split() if _name(flag) not in flags]
    os.environ[VARIABLE] = " ".join([*kept, *(f"--{name}={_spelt(value)}" for name, value in flags.items())])


def _name(flag: str) -> str:
    return flag.removeprefix("--").partition("=")[0]


def _spelt(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
