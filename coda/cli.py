"""The Lightning CLI of ``main.py``: what it adds to Lightning's own."""

import sys
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningModule
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from callbacks import (
    BenchmarkEvaluation,
    BoundReport,
    DiffusionMonitor,
    DiffusionProgressBar,
    DiffusionSampling,
    GradientNorm,
    ModelExport,
    PredictionWriter,
    Preemption,
    Throughput,
)
from coda.checkpoint import find_last, read_checkpoint

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class CodaCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` over one YAML, with overlays.

    The callbacks that have settings get a section of their own (``sampling``, ``evaluation``, ``checkpoint``,
    ``export``), so that an overlay changes one setting of one of them; monitors without settings are always there. More
    go into ``trainer.callbacks``.
    """

    def __init__(self, model_class: type[LightningModule], **options: Any) -> None:
        monitors = [
            LearningRateMonitor("step"),
            DiffusionMonitor(),
            GradientNorm(),
            Throughput(),
            BoundReport(),
            PredictionWriter(),
            Preemption(),
        ]
        defaults = {
            "subclass_mode_data": True,
            "auto_configure_optimizers": False,
            # The data modules deal out the rows themselves: a second sampler around theirs would shuffle validation.
            "trainer_defaults": {"callbacks": monitors, "use_distributed_sampler": False},
            "save_config_kwargs": {"overwrite": True},
        }
        super().__init__(model_class, **{**defaults, **options})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections of the configurable callbacks."""
        parser.add_lightning_class_args(DiffusionSampling, "sampling")
        parser.add_lightning_class_args(BenchmarkEvaluation, "evaluation")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ModelExport, "export")
        parser.set_defaults(
            {
                "checkpoint.save_last": True,
                "checkpoint.filename": "{step}",
                "checkpoint.enable_version_counter": False,  # a resumed run writes the same names again
            }
        )

    def before_instantiate_classes(self) -> None:
        """Add the progress bar unless ``trainer.enable_progress_bar`` is false.

        Raises:
            ValueError: For a run of no length, which Lightning would skip without a word.
        """
        config = self.config if self.subcommand is None else self.config[self.subcommand]
        if config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(DiffusionProgressBar())
        for setting in ("max_steps", "max_epochs"):
            if config.trainer[setting] == 0:
                raise ValueError(f"trainer.{setting} is 0; train for at least 1, or use validate, test or predict")

    def before_fit(self) -> None:
        """Find out what does not fit before a corpus is tokenised and a run's folder is made."""
        options = self.config_init[self.config_init.subcommand]
        self.model.config = yaml.safe_load(self._parser(self.subcommand).dump(self.config[self.subcommand]))
        if options.ckpt_path == "last":
            options.ckpt_path = self._last_checkpoint()
        checkpoint = options.ckpt_path
        if checkpoint not in (None, "best", "hpc") and "://" not in checkpoint and not Path(checkpoint).exists():
            raise ValueError(f"--ckpt_path {checkpoint} does not exist; give a .ckpt of the run to go on with, or last")
        self.model.check(self.datamodule, resuming=checkpoint is not None)
        if checkpoint not in (None, "best", "hpc"):
            # So that the Trainer knows it before the model is built, which then need not read init_from.
            self.trainer.ckpt_path, options.ckpt_path = checkpoint, None

    before_validate = before_test = before_predict = before_fit

    def _last_checkpoint(self) -> str | None:
        """The newest checkpoint of all versions of this run; a fit goes on in the logger's version that it comes from."""
        callback, logger = self.trainer.checkpoint_callback, self.trainer.logger
        folders = [Path(callback.dirpath)] if isinstance(callback, ModelCheckpoint) and callback.dirpath else []
        if isinstance(logger, TensorBoardLogger):
            folders += [version / "checkpoints" for version in Path(logger.root_dir).glob("*") if version.is_dir()]
        path, resuming = find_last(folders), self.config_init.subcommand == "fit"
        if path is None and not resuming:
            raise ValueError("--ckpt_path last, but the run has no checkpoint yet; fit first, or give a .ckpt")
        if path is None:
            rank_zero_info("--ckpt_path last: there is no checkpoint yet, the run starts anew")
            return None
        rank_zero_info(f"--ckpt_path last: taking {path}")
        if resuming and isinstance(logger, TensorBoardLogger) and path.parent.parent.parent == Path(logger.root_dir):
            logger._version = path.parent.parent.name
            # Points behind the checkpoint come again; TensorBoard forgets the old ones. The first step is number 0.
            logger._kwargs["purge_step"] = read_checkpoint(str(path))["global_step"]
        return str(path)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Look up bare config names in ``configs/`` before parsing."""
        if args is None or isinstance(args, list):
            args = find_configs(sys.argv[1:] if args is None else args)
            self.config = parser.parse_args(args)
        else:
            super().parse_arguments(parser, args)


def find_configs(args: list[str]) -> list[str]:
    """Replace each ``--config NAME`` that is no file here by ``configs/NAME`` if that is one.

    Raises:
        SystemExit: If neither exists; the message lists what does.
    """
    found = list(args)
    for i, arg in enumerate(found):
        option, equals, value = arg.partition("=")
        if option not in ("--config", "-c") or (not equals and i + 1 == len(found)):
            continue
        name = value if equals else found[i + 1]
        if "\n" in name or name.lstrip().startswith("{") or Path(name).is_file():
            continue
        if not (CONFIGS / name).is_file():
            known = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
            sys.exit(f"error: --config {name} is neither a file here nor in {CONFIGS.name}/, which has {known}")
        if equals:
            found[i] = f"{option}={CONFIGS / name}"
        else:
            found[i + 1] = str(CONFIGS / name)
    return found
