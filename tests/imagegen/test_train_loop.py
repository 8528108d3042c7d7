"""The loop on toy models that can be worked out: accumulation, clipping, guards, resuming."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from imagegen.checkpointing import checkpoints
from imagegen.config import load_config
from imagegen.runs import Run
from imagegen.training import step_seed, train_loop
from rqtoolkit.errors import DataError


def toy_run(folder, **settings):
    defaults = {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 0.1,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": None,
        "weight_average": 0.5,
        "log_every": 1,
        "checkpoint_every": 2,
        "sample_every": 100,
    }
    overrides = {f"stage1.{key}": value for key, value in {**defaults, **settings}.items()}
    config = load_config("digits", overrides=overrides)
    return Run.create(folder, config, resume=(folder / "config.yaml").exists())


def toy_models():
    generator = torch.Generator().manual_seed(1)
    models = {"generator": nn.Linear(3, 1), "critic": nn.Linear(3, 1, bias=False)}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return models


def batch_of(step):
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def train(run, models, *, factor=None, noise=0.1, optimizer=torch.optim.Adam, progress=None):
    """Regress 2 from the rows of a batch by both models, the target noisy by the step's seed."""
    config = run.config.stage1
    optimizers = {name: optimizer(model.parameters(), 1.0) for name, model in models.items()}

    def compute(step, batch, *, share):
        target = 2 + noise * torch.randn(len(batch), 1)
        total = sum(F.mse_loss(model(batch), target) for model in models.values())
        total = total if factor is None else total * factor(step)
        (share * total).backward()
        return total.detach(), lambda: {"target": target.mean().item(), "rows": [1.0, 2.0]}

    def batches(start):
        parts = (batch_of(step).chunk(config.accumulate) for step in range(start, config.steps))
        yield from itertools.chain.from_iterable(parts)

    train_loop(
        run,
        stage=1,
        config=config,
        models=models,
        optimizers=optimizers,
        compute=compute,
        observe=lambda _step: {"observed": models["generator"].weight.sum().item()},
        finish=lambda: None,
        batches=batches,
        progress=progress,
    )
    return {f"{n}.{k}": v for n, m in models.items() for k, v in m.state_dict().items()}


def figures(run):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics()]


def test_a_step_is_plain_gradient_descent_of_every_model(tmp_path):
    models = toy_models()
    weight = models["critic"].weight[0].detach().clone()
    run = toy_run(tmp_path / "run", steps=1)
    train(run, models, optimizer=torch.optim.SGD)
    torch.manual_seed(step_seed(0, 1, 0))
    x, target = batch_of(0), 2 + 0.1 * torch.randn(8, 1)
    gradient = 2 * ((x @ weight[:, None] - target) * x).mean(0)
    torch.testing.assert_close(models["critic"].weight[0].detach(), weight - 0.1 * gradient)
    line, _ = run.metrics()
    assert line["critic_gradient_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert (line["target"], line["rows"]) == (pytest.approx(target.mean().item()), [1.0, 2.0])


def test_parts_of_a_step_add_up_to_it(tmp_path):
    whole, parts = (
        train(toy_run(tmp_path / str(n), accumulate=n), toy_models(), noise=0.0) for n in (1, 4)
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)
    losses = [
        [m["loss"] for m in Run.open(tmp_path / n).metrics() if "loss" in m] for n in ("1", "4")
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_each_model_is_clipped_by_itself(tmp_path):
    models, run = toy_models(), toy_run(tmp_path / "run", steps=1, clip_norm=0.25)
    before = {name: [p.detach().clone() for p in m.parameters()] for name, m in models.items()}
    train(run, models, optimizer=torch.optim.SGD)
    for name, model in models.items():
        moved = [p.detach() - old for p, old in zip(model.parameters(), before[name], strict=True)]
        norm = torch.cat([m.flatten() for m in moved]).norm().item()
        assert norm == pytest.approx(0.1 * 0.25, rel=1e-4), name
        assert run.metrics()[0][f"{name}_gradient_norm"] > 0.25


def test_both_models_go_on_to_the_bit(tmp_path):
    class KilledError(Exception):
        pass

    def kill(_description, done, _total):
        if done == 5:
            raise KilledError

    whole = toy_run(tmp_path / "whole")
    expected = train(whole, toy_models())
    with pytest.raises(KilledError):
        train(toy_run(tmp_path / "run"), toy_models(), progress=kill)
    again = toy_run(tmp_path / "run")
    found = train(again, toy_models())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert figures(again) == figures(whole)
    for one, other in zip(checkpoints(whole, 1), checkpoints(again, 1), strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("settings", "poison", "message"),
    [
        ({}, float("nan"), "got a loss of nan at step 4"),
        ({}, float("inf"), "got a loss of inf at step 4"),
        ({"loss_limit": 1e4}, 1e5, r"got a loss of .* at step 4, over stage1\.loss_limit=10000"),
        (
            {"gradient_limit": 1e3},
            1e5,
            r"got a gradient norm of the generator of .* at step 4, over stage1\.gradient_limit",
        ),
    ],
)
def test_a_diverging_run_stops_before_it_spoils_a_checkpoint(tmp_path, settings, poison, message):
    run = toy_run(tmp_path / "run", **settings)
    with pytest.raises(DataError, match=message) as raised:
        train(run, toy_models(), factor=lambda step: poison if step == 3 else 1.0)
    assert "stage 1 of" in str(raised.value)
    assert "stage1.learning_rate" in str(raised.value)
    assert "stage1-0000002.safetensors" in str(raised.value)
    assert [path.name for path in checkpoints(run, 1)] == ["stage1-0000002.safetensors"]
    assert run.metrics()[-1]["step"] == 3


def test_gradients_that_are_no_numbers_stop_a_run_whose_loss_is_fine(tmp_path):
    models = toy_models()
    run = toy_run(tmp_path / "run")
    models["critic"].weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DataError, match="gradient norm of the critic of nan at step 1"):
        train(run, models)
    assert not checkpoints(run, 1)


def test_the_last_checkpoints_are_kept(tmp_path):
    run = toy_run(tmp_path / "run", steps=9, keep_checkpoints=3)
    train(run, toy_models())
    steps = [path.stem for path in checkpoints(run, 1)]
    assert steps == ["stage1-0000006", "stage1-0000008", "stage1-0000009"]


def test_what_is_observed_has_the_averaged_weights(tmp_path):
    models = toy_models()
    run = toy_run(tmp_path / "run", steps=2, weight_average=0.5)
    weights = []
    train(
        run,
        models,
        progress=lambda *_: weights.append(models["generator"].weight.sum().item()),
    )
    # decay min(0.5, n / (n + 9)) is 0, then 0.1
    observed = [line["observed"] for line in run.metrics() if "observed" in line]
    assert observed == [pytest.approx(0.1 * weights[0] + 0.9 * weights[1], rel=1e-5)]


def test_progress_tells_the_loss_and_the_pace(tmp_path):
    told = []
    train(toy_run(tmp_path / "run"), toy_models(), progress=lambda text, *_: told.append(text))
    assert all(text.startswith("Stage 1 of 2, loss ") for text in told)
    assert all(text.endswith(" images/s") for text in told)
