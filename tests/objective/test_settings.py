"""What an objective's settings have to be, before anything heavy is imported."""

import pytest

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.objective import DPO, KTO, ORPO, SFT, objective_of
from chatbot_sft.train.choice import chosen


@pytest.mark.parametrize(("name", "kind"), [("sft", SFT), ("dpo", DPO), ("orpo", ORPO), ("kto", KTO)])
def test_a_name_alone_is_its_class(name, kind):
    """As in a YAML file without Hydra."""
    objective = objective_of(Config.from_mapping({"objective": {"name": name}}))
    assert type(objective) is kind
    assert objective.means_tokens == (name == "sft")


@pytest.mark.parametrize(
    ("given", "losses"),
    [
        ({}, [("sigmoid", 1.0)]),
        ({"loss_type": "ipo"}, [("ipo", 1.0)]),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, [("sigmoid", 1.0), ("sft", 0.5)]),
        ({"loss_type": ["hinge", "sft"]}, [("hinge", 1.0), ("sft", 1.0)]),
    ],
)
def test_losses_have_their_weights(given, losses):
    objective = objective_of(Config.from_mapping({"objective": {"name": "dpo", **given}}))
    assert objective.weighted_losses == losses


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0}, "objective.beta=0.0: must be above 0"),
        ({"beta": -1}, "objective.beta=-1.0: must be above 0"),
        ({"name": "ppo"}, "objective.name=ppo: not one of sft, dpo, orpo, kto"),
        ({"loss_type": "sigmod"}, "objective.loss_type=sigmod: not one of .*did you mean sigmoid"),
        ({"loss_type": "kto"}, "objective.loss_type=kto: not one of sigmoid"),
        ({"name": "orpo", "loss_type": "sigmoid"}, "objective.loss_type=sigmoid: ORPO has one loss"),
        ({"loss_weights": [1.0, 0.5]}, "objective.loss_weights=.*: 2 weights for 1 loss types"),
        ({"label_smoothing": 0.1}, "objective.label_smoothing=0.1: .* needs objective.loss_type=robust or exo_pair"),
        ({"name": "orpo", "label_smoothing": 0.1}, "objective.label_smoothing=0.1: .* needs objective=dpo"),
        ({"label_smoothing": 0.5, "loss_type": "robust"}, "objective.label_smoothing=0.5: must be at least 0 and below"),
        ({"loss_type": "exo_pair"}, "objective.loss_type=exo_pair needs objective.label_smoothing"),
        ({"name": "orpo", "reference": "outputs/a"}, "objective.reference=outputs/a: ORPO has no reference"),
        ({"_target_": "collections.Counter"}, "objective._target_=collections.Counter: collections is neither of this"),
        (
            {"_target_": "chatbot_sft.model.ModelLoader"},
            "objective._target_=.*: has to be a subclass of chatbot_sft.objective",
        ),
        ({"_target_": "chatbot_sft.objective.DPOO"}, "did you mean DPO"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        objective_of(Config.from_mapping({"objective": {"name": "dpo", **given}}))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"loop": "trl"}, "objective=dpo with training.loop=trl: TRL's loop is its SFTTrainer"),
        ({"report_to": "swanlab"}, "objective=dpo with training.report_to=swanlab: TRL's loop"),
    ],
)
def test_trls_loop_is_for_sft_alone(training, message):
    with pytest.raises(UserError, match=message):
        chosen(Config.from_mapping({"objective": {"name": "dpo"}, "training": training}))


def test_a_loss_of_ones_own_over_conversations_is_not_passed_over(tmp_path, monkeypatch):
    """By the one pass of the head that plain fine-tuning has, or by TRL's trainer."""
    text = "from chatbot_sft.objective import SFT\nclass Mine(SFT):\n    def loss(self, sequences): ...\n"
    (tmp_path / "my_loss.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    given = {"objective": {"_target_": "my_loss.Mine"}, "training": {"loop": "trl"}}
    settings = Config.from_mapping(given)
    assert not objective_of(settings).means_tokens
    with pytest.raises(UserError, match=r"objective=my_loss.Mine with training.loop=trl"):
        chosen(settings)


def test_label_smoothing_of_the_tokens_is_for_sft_alone():
    config = {"objective": {"name": "dpo"}, "training": {"label_smoothing_factor": 0.1}}
    with pytest.raises(UserError, match=r"training.label_smoothing_factor=0.1 with objective=dpo"):
        objective_of(Config.from_mapping(config))


def test_a_key_of_a_class_of_ones_own_has_a_place(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text(
        "from chatbot_sft.objective import Objective\nclass Mine(Objective): pass\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {"name": "dpo", "_target_": "my_method.Mine", "gamma": 0.5}
    objective = objective_of(Config.from_mapping({"objective": given}))
    assert objective.settings.extra == {"gamma": 0.5}
