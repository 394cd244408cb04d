"""One slip in every kind of word that a person types; each is answered with the word that was meant."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from launcher import Refused, read_once, started

from chatbot_sft.data import formats
from chatbot_sft.data.personal import detector
from chatbot_sft.data.row import Row
from chatbot_sft.errors import UserError

GOLDEN = ["task=evaluate", "url=http://localhost:1/v1"]
WORDS = {  # one slip in the last word
    "option of model": (["model=lama3b"], "llama3b"),
    "option of dataset": (["dataset=white_crne"], "white_crane"),
    "option of objective": (["objective=kot"], "kto"),
    "option of save": (["save=ggfu"], "gguf"),
    "option of lora": (["lora=rslroa"], "rslora"),
    "another tool's word for an option": (["lora=qlora"], "lora=default model.load_in_4bit=true"),
    "experiment": (["experiment=quik"], "quick"),
    "debug": (["debug=overfitt"], "overfit"),
    "hparams_search": (["-m", "hparams_search=rate_rnk"], "rate_rank"),
    "group": (["modle=llama3b"], "model"),
    "group of Hydra's": (["hydra/luncher=joblib"], "hydra/launcher"),
    "launcher": (["hydra/launcher=slrum"], "slurm"),
    "launcher to install": (["hydra/launcher=jblib"], "joblib"),
    "sweeper": (["hydra/sweeper=basik"], "basic"),
    "key of Hydra's": (["hydra.run.dri=x"], "hydra.run.dir"),
    "new key of Hydra's": (["+hydra.mmode=x"], "hydra.mode"),
    "key": (["lora.lora_alhpa=8"], "lora.lora_alpha"),
    "key of SFTConfig": (["training.neftune_noise_alfa=5"], "training.neftune_noise_alpha"),
    "another tool's key": (["training.lr=1e-4"], "training.learning_rate"),
    "key of another section": (["training.lora_dropout=0.1"], "lora.lora_dropout"),
    "key that is taken away": (["~lroa"], "lora"),
    "flag": (["--confg-dir=x"], "--config-dir"),
    "topic of --help": (["--help", "lora.lora_alhpa"], "lora.lora_alpha"),
    "one of several topics of --help": (["--help", "lora.r", "lora.lora_alhpa"], "lora.lora_alpha"),
    "group of --help": (["--help", "modle"], "model"),
    "task": (["task=trian"], "train"),
    "engine": (["model.engine=unslot"], "unsloth"),
    "dtype": (["model.dtype=bfloat61"], "bfloat16"),
    "logger": (["training.report_to=wanbd"], "wandb"),
    "one of several loggers": (["training.report_to=[mlflow,tensorbord]"], "tensorboard"),
    "optimizer": (["training.optim=adamw8bit"], "adamw_8bit"),
    "schedule": (["training.lr_scheduler_type=cosin"], "cosine"),
    "argument of a schedule": (
        ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr_rat: 0.1}"],
        "min_lr_rate",
    ),
    "quantization": (["save=gguf", "save.gguf_quantization=q4_kk_m"], "q4_k_m"),
    "one of several exports": (["save.method=[lora,merged16bit]"], "merged_16bit"),
    "format of data": (["dataset.format=mesages"], "messages"),
    "personal data": (["dataset.personal_data=redcat"], "redact"),
    "key of a source": (["dataset.sources=[{data_path: a.json, wieght: 1}]"], "weight"),
    "initialisation": (["lora.init_lora_weights=gausian"], "gaussian"),
    "targets": (["lora.target_modules=all-lienar"], "all-linear"),
    "sampler": (["-m", "lora.r=8,16", "sweep.sampler=tpes", "sweep.trials=2"], "tpe"),
    "pruner": (["-m", "lora.r=8,16", "sweep.pruner=halvign"], "halving"),
    "direction": (["-m", "lora.r=8,16", "sweep.direction=minimize"], "minimise"),
    "metric": (["-m", "lora.r=8,16", "sweep.metric=training.eval_los"], "training.eval_loss"),
    "metric without its part": (["-m", "lora.r=8,16", "sweep.metric=eval_loss"], "training.eval_loss"),
    "metric of answers": (["-m", "lora.r=8,16", "sweep.metric=evaluation.pased"], "evaluation.passed"),
    "format that a server has": ([*GOLDEN, "evaluation.golden=x", "evaluation.format=q8_00"], "q8_0"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def files_are_read_once():
    with read_once():
        yield


@pytest.mark.parametrize("kind", WORDS)
def test_a_slip_on_the_command_line(kind):
    words, meant = WORDS[kind]
    with pytest.raises(Refused) as caught:
        started(words)
    assert "did you mean" in str(caught.value) and meant in str(caught.value).partition("did you mean")[2]


@pytest.mark.parametrize(
    ("file", "entry", "said"),
    [
        ("model/mine", "locl", "there is no model/locl.yaml in conf/ or in --config-dir; did you mean model/local?"),
        ("model/mine", "/modl/local", "there is no modl/local.yaml in conf/ or in --config-dir; did you mean model/local?"),
        ("model/mine", "zzz", "there is no model/zzz.yaml in conf/ or in --config-dir; name one that is there"),
        ("experiment/mine", "override /modl: llama3b", "no group modl was chosen; did you mean override /model?"),
        ("experiment/mine", "override model: llama3b", "no group experiment/model was chosen; did you mean override /model?"),
    ],
)  # fmt: skip
def test_a_slip_in_a_defaults_list_of_ones_own(tmp_path, file, entry, said):
    folder = tmp_path / file.partition("/")[0]
    folder.mkdir()
    package = "# @package _global_\n" if folder.name == "experiment" else ""
    (folder / "mine.yaml").write_text(f"{package}defaults:\n  - {entry}\n")
    with pytest.raises(Refused) as caught:
        started(["--config-dir", str(tmp_path), f"{folder.name}=mine"])
    assert str(caught.value) == f"{file}.yaml: defaults: {said}"


@pytest.mark.parametrize(
    ("case", "meant"),
    [
        ({"contain": "Tuesday"}, "contains"),
        ({"regexp": "a+"}, "regex"),
        ({"json_shema": {"type": "object"}}, "json_schema"),
        ({"contains": "a", "case_sensitiv": True}, "case_sensitive"),
        ({"contains": "a", "tagz": ["x"]}, "tags"),
    ],
)
def test_a_slip_in_a_golden_case(tmp_path, case, meant):
    from chatbot_sft.evaluation import cases

    file = tmp_path / "golden.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Which day?"}], **case}) + "\n")
    with pytest.raises(UserError, match=rf"row 1.*did you mean {meant}\?"):
        cases.read(file)


def test_a_slip_in_a_column_or_a_field():
    rows = [Row("my.json", 1, {"question": "a", "answer": "b"})]
    with pytest.raises(UserError, match=r"no column 'questoin' for instruction; did you mean question\?"):
        formats.check_columns("my.json", rows, {"instruction": "questoin", "output": "answer"})
    with pytest.raises(UserError, match=r"columns.instrution: no such field; did you mean instruction\?"):
        formats.check_columns("my.json", rows, {"instrution": "question"})


@pytest.mark.parametrize(("given", "meant"), [("uk", "GB"), ("vn", "VN"), ("XX", None)])
def test_a_country(given, meant):
    with pytest.raises(UserError) as caught:
        detector._known("phone_regions", (given,), ["DE", "GB", "VN"])
    expected = f"did you mean {meant}?" if meant else "there are DE, GB, VN"
    assert str(caught.value) == f"dataset.phone_regions=[{given}]: no such country; {expected}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (
            {"target_modules": ["q_proj", "o_prj"]},
            "the model has no o_prj; did you mean o_proj?; its linear layers",
        ),
        ({"modules_to_save": ["embed_token"]}, "the model has no embed_token; did you mean embed_tokens?"),
    ],
)
def test_a_module_is_looked_for_before_weights_are_loaded(tiny_llama, lora, said):
    from chatbot_sft.config import Config
    from chatbot_sft.model import load

    settings = Config.from_mapping(
        {"model": {"name": str(tiny_llama), "load_in_4bit": False, "engine": "transformers"}, "lora": lora}
    )
    engine = SimpleNamespace(load=lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UserError) as caught:
        load.load_base(settings, str(tiny_llama), engine, None)
    assert said in str(caught.value)
