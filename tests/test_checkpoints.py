"""What a run leaves on disk: it goes on from there, keeps its best, and says what does not fit."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.optimizers import WarmupCosineSchedule

from organdetr_monai.budget import TrainingBudget
from organdetr_monai.checkpoints import (
    TrainingState,
    check_settings,
    load_settings,
    load_weights,
    save_atomically,
    settings_of,
    weights_id,
)
from organdetr_monai.errors import InputError
from organdetr_monai.networks import HybridQueries, ROIRefiner


class Run:
    """A trainer that adds one to its only weight at each epoch, and an evaluator with given results."""

    def __init__(self, folder, metrics=(), resume=True):
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(self.model.weight)
        state = SimpleNamespace(best_metric=-1.0, best_metric_epoch=-1)
        self.evaluator = SimpleNamespace(state=state)
        self.trainer = Engine(lambda engine, batch: None)
        self.trainer.state.device = "cpu"
        self.trainer.state.max_epochs = 99

        @self.trainer.on(Events.EPOCH_COMPLETED)
        def _(engine):
            with torch.no_grad():
                self.model.weight += 1
            value = metrics[engine.state.epoch - 1]
            if value > state.best_metric:
                state.best_metric, state.best_metric_epoch = value, engine.state.epoch

        handler = TrainingState(folder, {"network": self.model}, self.model, self.evaluator, resume=resume)
        handler.attach(self.trainer)

    def __call__(self, epochs):
        self.trainer.state.max_epochs = epochs
        self.trainer.run([0], max_epochs=epochs)
        return self


def test_interrupted_run_goes_on_where_it_was(tmp_path):
    Run(tmp_path, [0.1, 0.2, 0.3, 0.4])(2)
    second = Run(tmp_path, [0.1, 0.2, 0.3, 0.4])(4)
    assert second.model.weight.item() == 4 and second.trainer.state.epoch == 4


def test_best_model_survives_worse_epochs_and_a_resumption(tmp_path):
    metrics = [0.1, 0.9, 0.3, 0.4]
    Run(tmp_path, metrics)(3)
    assert torch.load(tmp_path / "model.pt")["weight"].item() == 2
    Run(tmp_path, metrics)(4)  # 0.4 is the best that this process saw, not the best of the run
    assert torch.load(tmp_path / "model.pt")["weight"].item() == 2


def test_weights_that_were_there_are_kept_once(tmp_path):
    files = {"model.pt": b"shipped", "model.json": b"{}", "thresholds.json": b"[]", "README.md": b"of the folder"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Run(tmp_path, [-2.0, 0.2])(1)
    Run(tmp_path, [-2.0, 0.2])(2)
    assert torch.load(tmp_path / "model.pt")["weight"].item() == 2
    kept = {path.name: path.read_bytes() for path in (tmp_path / "as_installed").iterdir()}
    assert kept == {name: content for name, content in files.items() if name != "README.md"}
    (tmp_path / "last.pt").unlink()
    Run(tmp_path, [0.5])(1)
    assert (tmp_path / "as_installed" / "model.pt").read_bytes() == b"shipped"
    Run(tmp_path / "new", [0.5])(1)
    assert not (tmp_path / "new" / "as_installed").exists()


def test_resume_off_starts_anew(tmp_path):
    Run(tmp_path, [0.1, 0.2])(2)
    assert Run(tmp_path, [0.1, 0.2], resume=False)(1).model.weight.item() == 1


def test_state_of_another_network_is_refused(tmp_path):
    Run(tmp_path, [0.1])(1)
    other = Run(tmp_path, [0.1, 0.1])
    other.model = torch.nn.Linear(2, 3)
    handler = TrainingState(tmp_path, {"network": other.model}, other.model)
    with pytest.raises(InputError, match="cannot be resumed.*--ckpt_dir"):
        handler.restore(other.trainer)


def test_run_with_another_set_of_parts_is_named(tmp_path):
    model, engine = torch.nn.Linear(1, 1), SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=3, max_epochs=5))
    engine.state.device = "cpu"
    plain, limited = {"network": model}, {"network": model, "budget": TrainingBudget(1)}
    for name, begun, now, message in (
        ("a", limited, plain, "was begun with a budget.*Give the configs that it was begun with"),
        ("b", plain, limited, "was begun without a budget.*Give the configs that it was begun with"),
    ):
        TrainingState(tmp_path / name, begun, model).store(engine)
        with pytest.raises(InputError, match=message):
            TrainingState(tmp_path / name, now, model).restore(engine)


def test_state_of_a_training_is_no_model(tmp_path):
    Run(tmp_path, [0.1])(1)
    with pytest.raises(InputError, match=r"last\.pt is the state of a training.*model\.pt"):
        load_weights(torch.nn.Linear(1, 1, bias=False), tmp_path / "last.pt")


def test_model_explains_itself(tmp_path):
    model = torch.nn.Linear(1, 1)
    handler = TrainingState(tmp_path, {"network": model}, model, settings={"organs": ["liver"], "spacing": [4.0] * 3})
    (tmp_path / "thresholds.json").write_text("of the model before")
    handler.store(SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=3, max_epochs=5)))
    assert not (tmp_path / "thresholds.json").exists()
    assert load_settings(tmp_path / "model.json") == {"organs": ["liver"], "spacing": [4.0, 4.0, 4.0]}


def test_run_of_other_organs_is_not_resumed(tmp_path):
    model, engine = torch.nn.Linear(1, 1), SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=3, max_epochs=5))
    TrainingState(tmp_path, {"network": model}, model, settings={"organs": ["liver", "spleen"]}).store(engine)
    other = TrainingState(tmp_path, {"network": model}, model, settings={"organs": ["spleen", "liver"]})
    engine.state.device = "cpu"
    with pytest.raises(InputError, match="other organs"):
        other.restore(engine)


def test_raised_number_of_epochs_lengthens_the_schedule(tmp_path):
    def schedule(total):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=total)

    short, long = schedule(10), schedule(40)
    for _ in range(10):
        short.step()
    model, engine = torch.nn.Linear(1, 1), SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=10, max_epochs=5))
    TrainingState(tmp_path, {"lr_scheduler": short}, model).store(engine)
    engine.state.device = "cpu"
    TrainingState(tmp_path, {"lr_scheduler": long}, model).restore(engine)
    factors = []
    for _ in range(29):
        long.step()
        factors.append(long.get_last_lr()[0])
    assert factors == sorted(factors, reverse=True), "the rate falls to the new end and never rises"


def test_resumed_run_learns_at_the_rate_asked_for(tmp_path):
    def parts(rate):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        return {"optimizer": optimizer, "lr_scheduler": WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=10)}

    before, same, slower = parts(1.0), parts(1.0), parts(0.1)
    for _ in range(5):
        before["lr_scheduler"].step()
    model, engine = torch.nn.Linear(1, 1), SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=5, max_epochs=5))
    TrainingState(tmp_path, before, model).store(engine)
    engine.state.device = "cpu"
    for resumed in (same, slower):
        TrainingState(tmp_path, resumed, model).restore(engine)
    rate = before["optimizer"].param_groups[0]["lr"]
    assert 0 < rate < 1
    assert same["optimizer"].param_groups[0]["lr"] == rate
    assert slower["optimizer"].param_groups[0]["lr"] == pytest.approx(0.1 * rate)
    slower["lr_scheduler"].step()
    assert 0 < slower["lr_scheduler"].get_last_lr()[0] < 0.1 * rate


@pytest.mark.parametrize(
    ("key", "value"), [("spacing", [4.0, 4.0, 4.0]), ("window", [64, 64, 64]), ("organs", ["spleen"])]
)
def test_weights_of_another_grid_or_other_organs_are_not_evaluated(tmp_path, key, value):
    trained = {"organs": ["liver"], "spacing": [5, 5, 5], "window": [96, 64, 96]}
    (tmp_path / "mine.json").write_text(json.dumps(trained))
    check_settings(tmp_path / "mine.pt", {**trained, "spacing": (5.0, 5.0, 5.0), "hu_window": [-300, 400]})
    with pytest.raises(InputError, match=rf"mine\.pt was trained with {key} .* asked for"):
        check_settings(tmp_path / "mine.pt", {**trained, key: value})
    check_settings(tmp_path / "other.pt", trained)  # nobody says how it was trained
    with pytest.raises(InputError, match=r"there is no .*other\.json"):
        settings_of(tmp_path / "other.pt", required=True)


def test_run_that_never_validated_keeps_its_last_model(tmp_path):
    model = torch.nn.Linear(1, 1)
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1))
    handler = TrainingState(tmp_path, {"network": model}, model, evaluator)
    for epoch in (1, 2):
        assert not (tmp_path / "model.pt").exists()
        handler.store(SimpleNamespace(state=SimpleNamespace(epoch=epoch, iteration=3, max_epochs=2)))
    assert (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("content", ['{"organs": ["$__import__(1)"]}', '{"device": 0}', "[1]", "{"])
def test_settings_that_could_be_code_are_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model.json"):
        load_settings(tmp_path / "model.json")


def test_failed_save_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "x.pt"
    save_atomically({"a": 1}, path)
    with pytest.raises(Exception, match="pickle|lambda"):
        save_atomically({"a": lambda: 1}, path)
    assert torch.load(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_queries_of_training_are_kept_for_resuming_and_not_shipped(tmp_path, small_network):
    network, plain = small_network(extra_queries=HybridQueries(24)), small_network()
    handler = TrainingState(tmp_path, {"network": network}, network)
    handler.store(SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=3, max_epochs=5)))
    last = torch.load(tmp_path / "last.pt", weights_only=True)["parts"]["network"]
    assert set(last) - set(plain.state_dict()) == {"extra_queries.content", "extra_queries.reference"}
    torch.nn.init.zeros_(network.content)
    torch.nn.init.zeros_(plain.content)
    own = network.extra_queries.content.detach().clone()
    for other in (plain, network):  # with the training's deltas and without
        load_weights(other, tmp_path / "model.pt")
        assert torch.equal(other.content, last["content"])
    assert torch.equal(network.extra_queries.content, own)


def test_weights_round_trip(tmp_path, small_network):
    network = small_network()
    save_atomically(network.state_dict(), tmp_path / "model.pt")
    other = small_network()
    torch.nn.init.zeros_(other.content)
    assert torch.equal(load_weights(other, tmp_path / "model.pt").content, network.content)


def test_a_part_that_a_file_lacks_is_left_to_be_trained_if_asked_for(tmp_path, small_network):
    plain, refined = small_network(), small_network(refiner=ROIRefiner(4))
    torch.nn.init.ones_(plain.content)
    save_atomically(plain.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match="first missing: refiner.*Give configs/refiner/none.json"):
        load_weights(refined, tmp_path / "plain.pt")
    save_atomically(refined.state_dict(), tmp_path / "refined.pt")
    with pytest.raises(InputError, match="first unknown: refiner.*Give configs/refiner/default.json"):
        load_weights(plain, tmp_path / "refined.pt")
    own = refined.refiner.mask.weight.detach().clone()
    load_weights(refined, tmp_path / "plain.pt", fresh="refiner")
    assert torch.equal(refined.content, plain.content) and torch.equal(refined.refiner.mask.weight, own)
    save_atomically(refined.state_dict(), tmp_path / "refined.pt")
    other = small_network(refiner=ROIRefiner(4))
    torch.nn.init.zeros_(other.refiner.mask.weight)
    load_weights(other, tmp_path / "refined.pt", fresh="refiner")  # what the file has counts
    assert torch.equal(other.refiner.mask.weight, own)
    lacking = {name: weight for name, weight in refined.state_dict().items() if name != "refiner.mask.weight"}
    save_atomically(lacking, tmp_path / "lacking.pt")
    with pytest.raises(InputError, match="first missing: refiner.mask.weight.*Use the configs"):
        load_weights(other, tmp_path / "lacking.pt", fresh="refiner")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "no weights"),
        (lambda p: p.write_text("hello"), "not a checkpoint"),
        (lambda p: torch.save([1, 2], p), "holds a list"),
        (
            lambda p: torch.save({"content": torch.zeros(3, 3)}, p),
            r"another architecture \(\d+ missing.*shape \(3, 3\)",
        ),
    ],
)
def test_wrong_checkpoint_is_named(tmp_path, small_network, write, message):
    path = tmp_path / "model.pt"
    if write:
        write(path)
    with pytest.raises(InputError, match=message):
        load_weights(small_network(), path)


def test_weights_have_an_id_of_their_own(tmp_path):
    for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        (tmp_path / name).mkdir()
        torch.save({"w": torch.full((3,), value)}, tmp_path / name / "model.pt")
    a, b, c = (weights_id(tmp_path / name / "model.pt") for name in "abc")
    assert a == c != b
    digest = hashlib.sha256((tmp_path / "a" / "model.pt").read_bytes()).hexdigest()
    assert a == f"sha256:{digest[:16]}"
    with pytest.raises(InputError, match="no weights at"):
        weights_id(tmp_path / "none.pt")
