"""Serve a model over HTTP, as OpenAI's API and as a page that shows denoising: ``python -m coda.serve --model DIR``."""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from coda.checkpoint import check_mask, load_model
from coda.command import one_line_errors
from coda.evaluation.subject import DEVICE, dtype_named
from coda.serving.limits import Limits

EXTRA = ("fastapi", "uvicorn", "prometheus_client", "pydantic", "starlette")
GRACE = 30  # seconds that running requests have to finish when the server is told to end


def main(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: str | None = None,
    name: str | None = None,
    sampler: dict[str, Any] | None = None,
    device: str = DEVICE,
    dtype: str | None = None,
    **limits: Any,
) -> None:
    """Serve a diffusion language model until it is told to end (SIGTERM, SIGINT).

    Args:
        model: An exported folder, a .ckpt or a Hugging Face name.
        host: Address to listen on; 0.0.0.0 is all of the machine's.
        port: To listen on.
        api_key_file: One key per line; requests under /v1/ must have one of them.
        name: What clients call the model; null is the folder's or hub's name.
        sampler: Settings of requests that do not give them, for example --sampler.steps 64 --sampler.max_new_tokens 256.
        device: Where to run.
        dtype: Of weights and arithmetic; null is bfloat16 on GPUs and float32 elsewhere.
        **limits: See :class:`coda.serving.limits.Limits`.
    """
    app = build(model, api_key_file, name, sampler or {}, device, dtype, Limits(**limits))
    import uvicorn

    if api_key_file is None and not _is_local(host):
        print(f"warning: anyone who reaches {host} may use this server; give --api_key_file", file=sys.stderr)
    uvicorn.run(app, host=host, port=port, server_header=False, timeout_graceful_shutdown=GRACE, access_log=False)


def build(
    model: str,
    api_key_file: str | None,
    name: str | None,
    sampler: dict[str, Any],
    device: str,
    dtype: str | None,
    limits: Limits,
) -> Any:
    """The ASGI application of :func:`main`.

    Raises:
        ValueError: For a setting that does not fit.
        ImportError: Without the extra.
    """
    try:
        from coda.serving.app import build_app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        raise ImportError(f"{error.name} is not installed; pip install 'coda-diffusion[serve]'") from error
    from coda.serving.engine import Engine
    from coda.serving.guard import read_keys
    from coda.serving.metrics import Metrics
    from coda.serving.requests import Reader
    from coda.serving.text import Detokenizer

    keys = [] if api_key_file is None else read_keys(api_key_file)
    wanted = dtype_named(dtype or ("bfloat16" if device.startswith("cuda") else "float32"))
    language_model, tokenizer = load_model(model, dtype=wanted)
    check_mask(language_model, tokenizer)
    language_model.eval().to(device)
    metrics = Metrics()
    reader = Reader(language_model, tokenizer, name or _name(model), sampler, limits.max_queue)
    engine = Engine(language_model, Detokenizer(tokenizer), metrics, limits)
    return build_app(reader, engine, metrics, keys, limits.max_body_bytes)


def underscored(arguments: list[str]) -> list[str]:
    """``--api-key-file`` as ``--api_key_file``: other servers write their options so."""
    names = re.compile(r"--[a-z][\w.-]*")
    return [
        names.sub(lambda found: "--" + found[0][2:].replace("-", "_"), each, count=1) if names.match(each) else each
        for each in arguments
    ]


def _name(model: str) -> str:
    path = Path(model)
    return path.resolve().name if path.exists() else model


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def command_line() -> ArgumentParser:
    """The parser of the command."""
    parser = ArgumentParser(prog="python -m coda.serve", description="Serve a diffusion language model over HTTP.")
    parser.add_argument("--config", action="config", help="a YAML file with these settings")
    parser.add_function_arguments(main, as_positional=False)
    return parser


if __name__ == "__main__":
    arguments = command_line().parse_args(underscored(sys.argv[1:])).as_dict()
    del arguments["config"]
    with one_line_errors(ImportError):
        main(**arguments)
