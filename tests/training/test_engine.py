"""The engine on a toy method: it learns, survives every kind of kill with the same bits, and fails with sentences."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import tyro
import yaml
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from safetensors import safe_open
from safetensors.torch import load_file

from headwarp.app.train import Train
from headwarp.media.errors import InputError
from headwarp.media.image import load_image
from headwarp.nets.depth import FaceDepth
from headwarp.nets.model_file import load_model, read_header, save_model
from headwarp.training import engine
from headwarp.training.checkpoint import checkpoints
from headwarp.training.clock import Clock
from headwarp.training.config import TrainConfig, TrainParams, find_config, read_config
from headwarp.training.engine import Diverged, Stopped, train
from headwarp.training.log import Meter
from headwarp.training.optim import Average
from headwarp.training.run_folder import run_folder

TOY = Path(__file__).with_name("toy.py")


@pytest.fixture
def file(tmp_path: Path, pictures: Path, toy: ModuleType) -> Path:
    """A configuration of the toy method."""
    tree = {
        "method": "toy",
        "dataset_params": {"root_dir": str(pictures), "frame_shape": [16, 16, 3]},
        "train_params": {
            "iterations": 12,
            "batch_size": 4,
            "lr": "1e-2",
            "milestones": [8],
            "gamma": 0.5,
            "ema": 0.9,
            "loss_weights": {"noise": 0.05},
        },
        "run_params": {"device": "cpu", "workers": 0},
        "log_params": {"log_freq": 4, "validation_freq": 6, "checkpoint_freq": 3, "tensorboard": False},
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(config: TrainConfig, folder: Path) -> Path:
    return train(config, folder, progress=False)


@pytest.fixture(autouse=True)
def one_thread():
    """As in `toy`, which other processes run: sums in another order have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def process(file: Path, folder: Path, *settings: str, trouble: str = "", launcher: tuple[str, ...] = ()) -> str:
    """`headwarp train` in a process of its own; returns what it said and its exit code."""
    command = [sys.executable, *launcher, str(TOY), str(file), str(folder), *settings]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TOY": trouble}, check=False)
    return f"{done.stderr}\nexit code {done.returncode}"


def last(folder: Path) -> Path:
    return checkpoints(folder / "checkpoints")[-1]


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Metadata and bits of a file; their order in it is safetensors' whim."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def log(folder: Path) -> list[dict[str, object]]:
    """The log without what depends on the clock."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("images_per_s", "shares")} for entry in entries]


def test_it_learns_validates_and_leaves_a_model(file, tmp_path, toy):
    config = read_config(file, ["train_params.iterations=60", "log_params.tensorboard=true", "log_params.best=-l1"])
    folder = run(config, tmp_path / "run")
    entries = log(folder)
    losses = [entry["losses"]["l1"] for entry in entries if "losses" in entry]
    assert losses[-1] < 0.7 * losses[0]
    validated = [entry["validation"]["test"]["l1"] for entry in entries if "validation" in entry]
    assert len(validated) == 10
    assert validated[-1] < 0.8 * validated[0]
    assert len({entry["lr"]["model"] for entry in entries if "lr" in entry}) == 2

    model = load_model(folder / "model.safetensors")
    assert isinstance(model, toy.Toy)
    facts = read_header(folder / "model.safetensors").facts
    assert (facts["steps"], facts["configuration"], facts["data"]) == ("60", "toy", "pictures")
    best = read_header(folder / "model-best.safetensors").facts["steps"]
    assert validated[int(best) // 6 - 1] == min(validated)

    sheet = load_image(folder / "validation" / "00000060-test.png")
    assert sheet.shape[1] == 2 * 16 + 3 * 4  # driving and output
    assert list(folder.glob("events.out.tfevents*"))
    assert read_config(folder / "config.yaml").as_dict() == config.as_dict()


def test_weights_and_biases_gets_the_numbers(file, tmp_path, monkeypatch):
    told: list[tuple[int, dict[str, float]]] = []
    begun: list[dict[str, object]] = []

    def init(**settings: object) -> SimpleNamespace:
        begun.append(settings)
        return SimpleNamespace(id="x1", log=lambda numbers, step: told.append((step, numbers)), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    settings = ["log_params.wandb=offline", "log_params.validation_freq=12"]
    monkeypatch.setenv("TOY", "5:SIGTERM")
    with pytest.raises(Stopped):
        run(read_config(file, settings), tmp_path / "run")
    run(read_config(file, settings), tmp_path / "run")
    assert [entry["id"] for entry in begun] == [None, "x1"]  # a resumed run is the same run there
    assert begun[0]["mode"] == "offline"
    assert [step for step, _ in told] == [4, 8, 12, 12]
    assert "losses/critic/hinge" in told[0][1]
    assert "validation/test/l1" in told[-1][1]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb is offline, but wandb is not installed"):
        run(read_config(file, settings), tmp_path / "other")


def test_the_saved_model_is_the_average(file, tmp_path, toy):
    folder = run(read_config(file), tmp_path / "run")
    state, model = load_file(last(folder)), load_file(folder / "model.safetensors")
    for name, value in model.items():
        assert torch.equal(value, state[f"ema.{name}"])
    assert not torch.equal(state["ema.up.weight"], state["model.up.weight"])
    assert torch.equal(state["ema.seen"], state["model.seen"])


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(file, tmp_path, monkeypatch):
    straight = run(read_config(file), tmp_path / "straight")
    monkeypatch.setenv("TOY", "4:SIGTERM")
    with pytest.raises(Stopped, match=r"after 5 steps.*The same command goes on"):
        run(read_config(file), tmp_path / "stopped")
    assert last(tmp_path / "stopped").stem == "00000005"
    monkeypatch.setenv("TOY", "1:SIGINT")
    with pytest.raises(Stopped, match="after 7 steps"):
        run(read_config(file), tmp_path / "stopped")
    monkeypatch.setenv("TOY", "")
    stopped = run(read_config(file), tmp_path / "stopped")
    assert content(last(stopped)) == content(last(straight))
    assert content(stopped / "model.safetensors") == content(straight / "model.safetensors")
    assert [(e["step"], e.get("validation")) for e in log(stopped)] == [
        (e["step"], e.get("validation")) for e in log(straight)
    ]


def test_a_run_that_was_killed_goes_on_with_the_same_bits(file, tmp_path):
    straight = run(read_config(file), tmp_path / "straight")
    assert "exit code -9" in process(file, tmp_path / "killed", trouble="7:SIGKILL")
    assert last(tmp_path / "killed").stem == "00000006"  # step 7 is lost, and done again
    killed = run(read_config(file, ["run_params.workers=2"]), tmp_path / "killed")
    assert content(last(killed)) == content(last(straight))


def test_the_command_says_how_it_ended(file, tmp_path, monkeypatch, capsys):
    command = Train(str(file), ("log_params.log_freq=1",), tmp_path / "run")
    for trouble, code, sentence in (("2:SIGTERM", 130, "Stopped after 3 steps"), ("2:nan", 1, "The loss term l1")):
        monkeypatch.setenv("TOY", trouble)
        with pytest.raises(SystemExit) as end:
            command.run()
        assert end.value.code == code
        assert f"headwarp: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "launcher", [(), pytest.param(("-m", "torch.distributed.run", "--nproc_per_node=2"), marks=pytest.mark.slow)]
)
def test_two_processes_learn_what_one_learns(file, tmp_path, launcher):
    quiet = ("train_params.loss_weights.noise=0", "run_params.workers=0")  # each process draws its own noise
    alone = run(read_config(file, quiet), tmp_path / "alone")
    said = process(file, tmp_path / "two", *quiet, "run_params.devices=2", launcher=launcher)
    assert said.endswith("exit code 0"), said
    one, two = load_file(last(alone)), load_file(last(tmp_path / "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if not name.endswith("seen"):  # counted by each process
            torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_parts_of_a_batch_add_up_to_the_batch(file, tmp_path):
    quiet = ["train_params.loss_weights.noise=0", "train_params.clip_grad=0.05"]
    whole = run(read_config(file, quiet), tmp_path / "whole")
    parts = run(read_config(file, [*quiet, "train_params.accumulate=2"]), tmp_path / "parts")
    for name, value in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(load_file(parts / "model.safetensors")[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_too(file, tmp_path, precision, monkeypatch):
    settings = [f"run_params.precision={precision}", "train_params.iterations=40", "train_params.clip_grad=1"]
    if precision == "fp16":  # on a CPU it needs to be asked for with its scaler
        fp16 = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        monkeypatch.setattr(engine, "launch", lambda run: Fabric(accelerator="cpu", devices=1, plugins=[fp16]))
    monkeypatch.setenv("TOY", "20:SIGTERM")
    with pytest.raises(Stopped):
        run(read_config(file, settings), tmp_path / "run")
    monkeypatch.setenv("TOY", "")
    entries = log(run(read_config(file, settings), tmp_path / "run"))
    losses = [entry["losses"]["l1"] for entry in entries if "losses" in entry]
    assert losses[-1] < 0.8 * losses[0]


def test_a_loss_that_is_not_finite_ends_the_run_with_the_way_back(file, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY", "7:nan")
    with pytest.raises(Diverged, match=r"The loss term l1 became nan or inf by step 8.*00000006\.safetensors"):
        run(read_config(file), tmp_path / "run")
    assert last(tmp_path / "run").stem == "00000006"
    assert all(value.isfinite().all() for value in load_file(last(tmp_path / "run")).values())


def test_weights_that_are_not_finite_are_not_saved(file, tmp_path):
    with pytest.raises(Diverged, match=r"The weights model\.down\.weight became nan"):
        run(read_config(file, ["train_params.lr=.inf", "log_params.checkpoint_freq=1"]), tmp_path / "run")
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


def test_old_checkpoints_go_and_the_best_stays(file, tmp_path):
    settings = ["log_params.validation_freq=1", "log_params.checkpoint_freq=1", "log_params.best=l1"]
    folder = run(read_config(file, [*settings, "log_params.keep_checkpoints=2"]), tmp_path / "run")
    best = int(read_header(folder / "model-best.safetensors").facts["steps"])
    kept = [int(path.stem) for path in checkpoints(folder / "checkpoints")]
    assert kept == sorted({best, 11, 12})
    with pytest.raises(InputError, match=r"log_params\.best is psnr, but the method reports l1"):
        run(read_config(file, ["log_params.best=psnr"]), tmp_path / "other")


def test_a_folder_of_another_run_is_refused(file, tmp_path):
    folder = run(read_config(file), tmp_path / "run")
    with pytest.raises(InputError, match=r"other settings \(train_params\.lr: 0\.01 there, 0\.02 here\)"):
        run(read_config(file, ["train_params.lr=0.02"]), folder)
    more = run(read_config(file, ["train_params.iterations=15", "log_params.log_freq=1"]), folder)
    assert last(more).stem == "00000015"


def test_a_folder_that_is_being_trained_is_refused(file, tmp_path):
    with run_folder(read_config(file), tmp_path / "run") as folder:
        said = process(file, folder)
        assert f"run is being trained by another process ({os.getpid()} on " in said
        assert not list((folder / "checkpoints").glob("*"))
    assert "exit code 0" in process(file, folder)


def test_settings_may_stand_behind_the_folder(tmp_path):
    for given in (["-o", "run", "a.b=1", "c=2"], ["a.b=1", "c=2", "-o", "run"]):
        command = tyro.cli(Train, args=["smoke", *given])
        assert (command.settings, command.output) == (("a.b=1", "c=2"), Path("run"))


def test_a_folder_of_a_run_that_never_began_takes_other_settings(file, tmp_path):
    with pytest.raises(InputError, match="must be a multiple of 5"):
        run(read_config(file, ["train_params.accumulate=5"]), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").exists()
    assert last(run(read_config(file), tmp_path / "run")).stem == "00000012"


def test_without_a_folder_an_unfinished_run_is_found(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOY", "4:SIGTERM")
    with pytest.raises(Stopped):
        train(read_config(file), progress=False)
    monkeypatch.setenv("TOY", "")
    folder = train(read_config(file), progress=False)
    assert [path.name for path in Path("log").iterdir()] == [folder.name]
    assert folder.name.startswith("toy ")
    assert last(folder).stem == "00000012"


def test_a_damaged_checkpoint_is_named(file, tmp_path):
    folder = run(read_config(file), tmp_path / "run")
    last(folder).write_bytes(last(folder).read_bytes()[:500])
    with pytest.raises(InputError, match=r"00000012\.safetensors cannot be read"):
        run(read_config(file), folder)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("train_params.batchsize=2", "train_params.batchsize is no setting of TrainParams; did you mean batch_size?"),
        ("train_param.lr=1", "train_param is no section of a toy configuration; did you mean train_params?"),
        ("train_params.loss_weights.l11=1", "loss_weights.l11 is no setting of ToyWeights; did you mean l1?"),
        ("model_params.width=wide", "model_params.width must be int, got 'wide'"),
        ("train_params.lr", "Settings are given as section.key=value"),
        ("train_params.lr.x=1", "train_params.lr.x: lr is no section"),
        ("train_params.num_epochs=3", "give either iterations or num_epochs"),
        ("dataset_params.frame_shape=[16]", "frame_shape must be"),
        ("method=to", "method must be one of pwm"),
        ("log_params.keep_checkpoints=0", "keep_checkpoints must be at least 1"),
        ("run_params.workers=-1", "run_params.workers must be at least 0"),
        ("train_params.lr=-1", "train_params.lr must not be negative"),
        ("train_params.betas=[2, 0.5]", "train_params.betas must be in [0, 1)"),
        ("run_params.devices=0", "run_params.devices must be at least 1"),
        ("dataset_params.sources=[{root_dir: a, weight: 0}]", "a weight must be positive, got 0.0"),
    ],
)
def test_wrong_settings_get_a_sentence(file, setting, sentence):
    with pytest.raises(InputError) as caught:
        read_config(file, [setting])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["train_params.batch_size=3", "train_params.accumulate=2"], "must be a multiple of 2"),
        (["dataset_params.root_dir=null"], "names no data"),
        (["dataset_params.root_dir=/nowhere"], "/nowhere is no folder"),
        (["dataset_params.sources=[{weight: 2}]"], "must have exactly one of root_dir"),
        ([f"dataset_params.cache_dir={__file__}"], "frames are kept in a folder"),
    ],
)
def test_wrong_data_settings_get_a_sentence(file, tmp_path, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        run(read_config(file, settings), tmp_path / "run")


def test_a_run_may_begin_with_the_weights_of_another(file, tmp_path):
    first = run(read_config(file, []), tmp_path / "first") / "model.safetensors"
    begin = read_config(file, [f"train_params.start_from={first}", "train_params.lr=0", "train_params.iterations=1"])
    second = run(begin, tmp_path / "second") / "model.safetensors"
    for name, value in load_file(second).items():
        assert name == "seen" or torch.equal(value, load_file(first)[name])
    with pytest.raises(InputError, match=r"start_from: There is no model file nothing.safetensors"):
        run(read_config(file, ["train_params.start_from=nothing.safetensors"]), tmp_path / "third")
    wide = [f"train_params.start_from={first}", "model_params.width=8"]
    with pytest.raises(InputError, match=r"other model_params: width 4 \(now 8\)"):
        run(read_config(file, wide), tmp_path / "fourth")
    save_model(tmp_path / "other.safetensors", FaceDepth())
    with pytest.raises(InputError, match=r"holds a model of the kind FaceDepth, and a model of the kind Toy"):
        run(read_config(file, [f"train_params.start_from={tmp_path}/other.safetensors"]), tmp_path / "fifth")


def test_pictures_that_do_not_fit_the_network_get_a_sentence(file, tmp_path):
    with pytest.raises(InputError, match=r"frame_shape \[15, 16, 3\] does not fit the network .* a multiple of 32 do"):
        run(read_config(file, ["dataset_params.frame_shape=[15, 16, 3]"]), tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_gets_a_sentence(file, tmp_path):
    with pytest.raises(InputError, match="1 x cuda cannot be used here"):
        run(read_config(file, ["run_params.device=cuda"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loader_processes_end_where_validation_cannot_begin(file, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, _: object) -> None:
            raise OSError("no validation")

    monkeypatch.setattr(engine, "Report", Broken)
    with pytest.raises(OSError, match="no validation") as caught:
        run(read_config(file, ["run_params.workers=1"]), tmp_path / "run")
    assert caught.tb is not None  # while somebody keeps it, and with it what its frames hold
    assert multiprocessing.active_children() == []


def test_configurations_are_found_by_name():
    with pytest.raises(InputError, match="There is no configuration nonesuch; "):
        find_config("nonesuch")


def test_epochs_become_steps():
    params = TrainParams(num_epochs=10, num_repeats=3, epoch_milestones=(6, 8), batch_size=4).in_steps(8)
    assert (params.iterations, params.milestones) == (60, (36, 48))


def test_the_average_forgets_at_the_given_rate():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, 0.9)
    torch.nn.init.ones_(model.weight)
    for step in range(200, 210):
        average.update(model, step)
    assert float(average.module.weight) == pytest.approx(1 - 0.9**10, rel=1e-5)
    average.update(model, 0)  # in the beginning the past weighs a tenth
    assert float(average.module.weight) == pytest.approx(1 - 0.1 * 0.9**10, rel=1e-5)


def test_the_meter_averages_over_the_steps_that_had_the_term():
    meter = Meter(0)
    meter.add({"a": torch.tensor(1.0)})
    meter.add({"a": torch.tensor(3.0), "b": torch.tensor(5.0)})
    assert meter.read(2)[0] == {"a": 2.0, "b": 5.0}
    meter.add({"a": torch.tensor(torch.inf)})
    assert meter.not_finite() == ["a"]


def test_a_clock_that_waits_watches_few_laps():
    waits = []
    clock = Clock(lambda: waits.append(1))
    for _ in range(32):
        clock.mark("data")
        clock.mark("losses")
        clock.lap()
    assert len(waits) == 4
    assert sum(clock.shares().values()) == pytest.approx(1)
