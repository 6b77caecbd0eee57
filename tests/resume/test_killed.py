"""A run that is killed and started again by the same command ends as one that never was, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.resume.command import TWO_RANKS, Run, assert_same_end

pytestmark = pytest.mark.slow

STEPS, GLOBAL = 12, 8
# Validation between two micro-batches of a step, which alone writes checkpoints.
MIDDLE = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=3"]
MIDDLE += ["--checkpoint.every_n_train_steps=null", "--checkpoint.save_on_train_epoch_end=false"]
MakeRun = Callable[[str], Run]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    folder = tmp_path_factory.mktemp("runs")
    return lambda name: Run(folder / name, corpus)


@pytest.fixture(scope="module")
def whole(run: MakeRun) -> Run:
    """One process, from the first step to the last; the same command as all others, although there is no checkpoint."""
    found = run("whole")
    assert "there is no checkpoint yet, the run starts anew" in found.fit()
    assert found.read() == [{step: [samples(step)] for step in range(STEPS)}]
    return found


@pytest.fixture(scope="module")
def whole_on_two(run: MakeRun) -> Run:
    found = run("whole_on_two")
    found.fit(*TWO_RANKS)
    return found


def samples(step: int) -> list[int]:
    return list(range(step * GLOBAL, (step + 1) * GLOBAL))


def kill(step: int, end: str = "SIGKILL", rank: int = 0) -> list[str]:
    """At the beginning of the step with this number, from 0 on."""
    after, by = f"--trainer.callbacks.after={step}", f"--trainer.callbacks.end={end}"
    return [after, by, f"--trainer.callbacks.rank={rank}"]


def test_a_killed_run_ends_as_one_that_never_was(run: MakeRun, whole: Run) -> None:
    """Twice: in the middle of the first pass over the data, and of the second one, with worker processes that read ahead."""
    killed = run("killed")
    killed.fit(*kill(3), expect=-9)
    killed.fit(*kill(7), "--data.num_workers=2", expect=-9)
    killed.fit()
    assert [[min(steps), max(steps)] for steps in killed.read()] == [[0, 3], [2, 7], [6, 11]]
    for steps in killed.read():
        assert steps == {step: [samples(step)] for step in steps}
    assert_same_end(killed, whole)


def test_a_checkpoint_in_the_middle_of_a_step_goes_on_with_the_whole_step(run: MakeRun) -> None:
    whole, killed = run("accumulated"), run("killed_in_the_middle")
    whole.fit(*MIDDLE)
    killed.fit(*MIDDLE, *kill(8), expect=-9)
    assert sorted(path.stem for path in killed.checkpoints.glob("step*")) == [
        f"step={step}" for step in (1, 3, 4, 6, 7)
    ]
    killed.fit(*MIDDLE)
    halves = {step: [samples(step)[:4], samples(step)[4:]] for step in range(STEPS)}
    assert whole.read() == [halves]
    assert killed.read()[1] == {step: halves[step] for step in range(7, STEPS)}
    assert_same_end(killed, whole)


def test_terminated_ranks_agree_save_and_go_on(run: MakeRun, whole_on_two: Run) -> None:
    """The signal reaches one rank alone, which is not the one that writes."""
    terminated = run("terminated")
    printed = terminated.fit(*TWO_RANKS, *kill(5, "SIGTERM", rank=1), expect=75)
    assert "terminated: wrote" in printed
    done = terminated.last()["global_step"]
    assert done in (6, 7)  # during the sixth step, or behind the step in which they agree
    terminated.fit(*TWO_RANKS)
    for rank in (0, 1):
        first, second = (steps for i, steps in enumerate(terminated.read()) if i % 2 == rank)
        assert min(second) == done
        for steps in (first, second):
            assert steps == {step: [samples(step)[4 * rank : 4 * rank + 4]] for step in steps}
    assert_same_end(terminated, whole_on_two)


def test_a_terminated_process_saves_the_step_it_is_in(run: MakeRun, whole: Run) -> None:
    """It is the step of a validation and the last of a pass, too."""
    terminated = run("terminated_alone")
    terminated.fit(*kill(7, "SIGTERM"), "--checkpoint.every_n_train_steps=100", expect=75)
    assert [path.name for path in terminated.checkpoints.iterdir()] == ["last.ckpt"]
    assert terminated.last()["global_step"] == 8
    terminated.fit()
    assert list(terminated.read()[1]) == [8, 9, 10, 11]
    assert_same_end(terminated, whole)


def test_other_numbers_of_ranks_read_the_same_samples(run: MakeRun, whole: Run, whole_on_two: Run) -> None:
    """Two ranks, killed; then four, killed; then one with four micro-batches per step."""
    elastic = run("elastic")
    elastic.fit(*TWO_RANKS, *kill(3), expect=-9)
    elastic.fit("--trainer.devices=4", "--trainer.strategy=ddp", *kill(7), expect=-9)
    elastic.fit("--trainer.accumulate_grad_batches=4")
    *many, alone = elastic.read()
    assert [min(steps) for steps in elastic.read()] == [0, 0, 2, 2, 2, 2, 6]
    for steps in range(2), range(2, 6):
        for step in steps:
            parts = [found[step][0] for found in many if min(found) == min(steps)]
            assert sorted(sample for part in parts for sample in part) == samples(step)
            assert len({len(part) for part in parts}) == 1
    for step in range(6, STEPS):
        assert alone[step] == [samples(step)[i : i + 2] for i in (0, 2, 4, 6)]
    for other in (elastic, whole_on_two):
        assert other.losses() == pytest.approx(whole.losses(), abs=1e-5)
