"""Every key of the schema is read somewhere, and one that does nothing beside others is refused or said."""

import ast
import dataclasses
from pathlib import Path

import pytest
from conftest import only_error

import chatbot_sft
from chatbot_sft import ConfigLoader, UserError
from chatbot_sft.config import Config, effects

ELSEWHERE = {"data_dir", "brings"}  # read by conf/dataset, and by config/precedence.py by its name


def test_every_key_of_the_schema_is_read_outside_of_it():
    files = [
        path
        for path in Path(chatbot_sft.__file__).parent.rglob("*.py")
        if path.name not in ("effects.py", "optimization.py")
    ]
    read = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and path.parent.name != "config"
            ):
                read.add(node.value)  # getattr over a tuple of names
    for section in (
        "paths",
        "model",
        "lora",
        "dataset",
        "objective",
        "training",
        "save",
        "sweep",
        "evaluation",
    ):
        names = {field.name for field in dataclasses.fields(getattr(Config(), section))}
        assert names - read - ELSEWHERE == set(), section


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model": {"name": "./base", "revision": "v2"}},
            "model.revision=v2 has no effect here: it needs a hub id in model.name",
        ),
        ({"model": {"name": "smollm2", "revision": "main"}}, "model.revision=main has no effect here"),
        (
            {"dataset": {"data_path": "my.json", "split": "test"}},
            "dataset.split=test has no effect here: it needs a dataset of the hub: a file is read",
        ),
        (
            {"dataset": {"data_path": "my.json", "config_name": "de"}},
            "dataset.config_name=de has no effect here",
        ),
        (
            {"dataset": {"data_path": "data/*.json", "revision": "v1"}},
            "dataset.revision=v1 has no effect here",
        ),
        (
            {"dataset": {"train_on": "last_assistant"}, "training": {"response_only": False}},
            "dataset.train_on=last_assistant has no effect here",
        ),
        (
            {"lora": {"loftq_bits": 8}},
            "lora.loftq_bits=8 has no effect here: it needs lora.init_lora_weights=loftq; or leave it out",
        ),
        (
            {"save": {"gguf_quantization": "q8_0"}},
            "save.gguf_quantization=q8_0 has no effect here: it needs save.method=gguf",
        ),
        (
            {"save": {"llama_cpp_dir": "/opt/llama.cpp"}},
            "save.llama_cpp_dir=/opt/llama.cpp has no effect here",
        ),
        (
            {"training": {"early_stopping_threshold": 0.1}},
            "training.early_stopping_threshold=0.1 has no effect here: it needs training.early_stopping_pat",
        ),
        (
            {"training": {"eval_delay": 5}},
            "training.eval_delay=5 has no effect here: it needs training.eval_steps",
        ),
        (
            {"training": {"sample_prompts": ["Hi"], "sample_max_new_tokens": 0}},
            "training.sample_prompts=['Hi'] has no effect here",
        ),
        (
            {"objective": {"beta": 0.2}},
            "objective.beta=0.2 has no effect here: it needs objective=dpo, orpo or kto",
        ),
        (
            {"objective": {"name": "dpo", "_target_": "chatbot_sft.objective.DPO", "desirable_weight": 3.0}},
            "objective.desirable_weight=3.0 has no effect here: it needs objective=kto",
        ),
        (
            {"training": {"trackio_space_id": "me/space"}},
            "training.trackio_space_id=me/space has no effect here: it needs training.report_to=trackio",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(config, message):
    with pytest.raises(UserError) as caught:
        ConfigLoader.validate_config(config)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, []),
        (
            {
                "model": {"name": "org/name", "revision": "v2"},
                "dataset": {"data_path": "org/data", "split": "test"},
            },
            [],
        ),
        (
            {
                "model": {"name": "gpt2", "revision": "main"},
                "dataset": {"_target_": "mine.Loader", "split": "test"},
            },
            [],
        ),
        ({"dataset": {"sources": [{"data_path": "org/data"}, {"data_path": "a.json"}], "split": "test"}}, []),
        ({"save": {"method": "gguf", "gguf_quantization": "q8_0"}}, []),
        ({"save": {"hub_model_id": "a/b"}}, ["save.hub_model_id=a/b (needs save.push_to_hub=true)"]),
        ({"save": {"hub_private": False}}, ["save.hub_private=false (needs save.push_to_hub=true)"]),
        (
            {"lora": {"r": 0, "lora_alpha": 32}, "model": {"load_in_4bit": False}},
            ["lora.lora_alpha=32 (needs lora.r above 0)"],
        ),
        (
            {"dataset": {"eval_data_path": "e.json", "eval_fraction": 0.2}},
            ["dataset.eval_fraction=0.2 (needs no dataset.eval_data_path)"],
        ),
        (
            {"training": {"batch_layout": "as_configured", "memory_margin": 0.3}},
            ["training.memory_margin=0.3 (needs training.batch_layout=auto)"],
        ),
        (
            {"training": {"lr_scheduler_type": "constant", "warmup_steps": 9}},
            ["training.warmup_steps=9.0 (needs a schedule with a warm-up)"],
        ),
        (
            {"training": {"save_strategy": "epoch", "save_steps": 5}},
            ["training.save_steps=5.0 (needs training.save_strategy=steps)"],
        ),
        (
            {"training": {"ddp_bucket_cap_mb": 25}},
            ["training.ddp_bucket_cap_mb=25 (needs more than one process)"],
        ),
    ],
)
def test_what_waits_for_another_setting_is_said(config, expected):
    assert ConfigLoader.validate_config(config)
    assert effects.said(Config.from_mapping(config)) == expected


DEFAULT = ["save.gguf_quantization=q4_k_m"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (DEFAULT, "save.gguf_quantization=q4_k_m has no effect here: it needs save.method=gguf"),
        (
            ["training.response_only=false", "dataset.train_on=assistant"],
            "dataset.train_on=assistant has no effect here",
        ),
        (["lora.loftq_bits=4"], "lora.loftq_bits=4 has no effect here"),
        ([*DEFAULT, "save=gguf"], None),
        (["save=gguf"], None),
        (["model.revision=null"], None),  # nothing is given
    ],
)
def test_a_key_on_the_command_line_is_given_even_where_it_is_the_default(overrides, message):
    from chatbot_sft.config import hydra_glue

    if message is None:
        hydra_glue.composed(overrides)
        return
    with pytest.raises(UserError) as caught:
        hydra_glue.composed(overrides)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("config", "named", "expected"),
    [
        (
            {"save": {"method": "none"}},
            ["save.hub_private"],
            ["save.hub_private=true (needs save.push_to_hub=true)"],
        ),
        ({"save": {"method": "none"}}, ["seed"], []),
        ({"save": {"method": "none"}}, ["save.hub_model_id"], []),  # null
    ],
)
def test_a_default_on_the_command_line_that_waits_is_said(config, named, expected):
    assert effects.said(Config.from_mapping(config), named) == expected


def test_every_key_of_the_tables_exists():
    from chatbot_sft.config import sft_arguments

    config = Config()
    for key, _, _ in (*effects.REFUSED, *effects.SAID):
        section, _, name = key.partition(".")
        assert name in {field.name for field in dataclasses.fields(getattr(config, section))} | set(
            sft_arguments.PASSED
        ), key


def test_refused_on_the_command_line(launch, tiny, tmp_path):
    assert only_error(launch("save.gguf_quantization=q8_0")).startswith(
        "save.gguf_quantization=q8_0 has no effect here: it needs save.method=gguf"
    )
    short = ["training.max_steps=1", "training.sample_max_new_tokens=0"]
    process = launch(*tiny, "save=none", "save.hub_model_id=a/b", *short)
    assert process.returncode == 0, process.stderr
    assert "settings: no effect here: save.hub_model_id=a/b (needs save.push_to_hub=true)\n" in process.stderr


def test_a_template_argument_that_the_template_never_reads_is_refused():
    from chatbot_sft.data.template import check_kwargs

    source = (
        "{% for message in messages %}{% if enable_thinking %}<think>{% endif %}{{ message.content }}{%"
        " endfor %}"
    )
    check_kwargs([source], {"enable_thinking": False}, "it")
    with pytest.raises(UserError) as caught:
        check_kwargs([source], {"enable_thinkin": False}, "org/name")
    expected = (
        "dataset.chat_template_kwargs.enable_thinkin: the chat template of org/name never reads it; did you"
        " mean enable_thinking?; leave it out"
    )
    assert str(caught.value) == expected
