"""What a sweep's command line asks for."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft import UserError
from chatbot_sft.sweep.points import Quantity, space

KEYS = ("lora.r", "lora.lora_alpha", "seed", "training.learning_rate")
LISTS = st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True)


def points(*words, **given):
    return list(space(words, **given).points())


@given(st.lists(LISTS, min_size=1, max_size=4))
def test_every_combination_comes_once(lists):
    swept = dict(zip(KEYS, lists, strict=False))
    found = points(*(f"{key}={','.join(map(str, values))}" for key, values in swept.items()))
    expected = [
        [f"{key}={value}" for key, value in zip(swept, combination, strict=True)]
        for combination in itertools.product(*swept.values())
    ]
    # One value is no sweep: then the key is the same in every job.
    assert found == [[word for word in point if len(swept[word.partition("=")[0]]) > 1] for point in expected]
    assert len({tuple(point) for point in found}) == len(found)


@given(st.lists(LISTS.filter(lambda values: len(values) > 1), min_size=2, max_size=3))
def test_zipped_lists_go_hand_in_hand_or_are_refused(lists):
    swept = dict(zip(KEYS, lists, strict=False))
    words = [f"{key}={','.join(map(str, values))}" for key, values in swept.items()]
    lengths = {len(values) for values in lists}
    if len(lengths) > 1:
        with pytest.raises(UserError, match=r"sweep\.zip: lists of different lengths \(lora\.r has \d, "):
            points(*words, zipped=list(swept))
        return
    found = points(*words, "run=a,b", zipped=list(swept))
    pairs = [
        [f"{key}={value}" for key, value in zip(swept, pair, strict=True)]
        for pair in zip(*lists, strict=True)
    ]
    assert found == [[*pair, f"run={run}"] for pair in pairs for run in "ab"]


def test_all_ways_of_hydra():
    assert points("lora.r=range(2,7,2)") == [["lora.r=2"], ["lora.r=4"], ["lora.r=6"]]
    assert points("lora.r=choice(8,16)", "run=x") == [["lora.r=8"], ["lora.r=16"]]
    assert points("lora.r=8") == [[]]
    assert points("++training.max_grad_norm=0.5,1") == [
        ["++training.max_grad_norm=0.5"],
        ["++training.max_grad_norm=1"],
    ]
    assert points('dataset.data_path="a b.json",c.json') == [
        ['dataset.data_path="a b.json"'],
        ["dataset.data_path=c.json"],
    ]


def test_the_command_line_beats_the_params_of_a_file():
    found = space(["lora.r=4", "seed=1,2"], {"lora.r": "8,16", "training.max_grad_norm": "0.5,1"})
    assert found.fixed == ["lora.r=4"]
    assert len(list(found.points())) == 4


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_the_later_word_of_a_key_wins_whatever_plus_signs_it_has(plus):
    key = "training.max_grad_norm"
    fixed = space([f"++{key}=0.5,1", "seed=1,2", f"{plus}{key}=3"], {f"++{key}": "5,6"})
    assert [fixed.job(point) for point in fixed.points()] == [
        ["seed=1", f"{plus}{key}=3"],
        ["seed=2", f"{plus}{key}=3"],
    ]
    swept = space([f"{key}=1", f"++{key}=2", "seed=1", f"{plus}{key}=3,4"])
    assert [swept.job(point) for point in swept.points()] == [
        ["seed=1", f"{plus}{key}=3"],
        ["seed=1", f"{plus}{key}=4"],
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["dataset.roles.a=user,assistant", "++dataset.roles={a: user}"],
        ["++dataset.roles={a: user},{a: assistant}", "dataset.roles.a=user"],
    ],
)
def test_a_word_behind_a_swept_one_that_sets_a_part_of_it_or_the_whole_is_refused(words):
    with pytest.raises(UserError) as error:
        points(*words)
    assert str(error.value).startswith(f"{words[1]}: sets what {words[0]} tries, or a part of it")
    assert str(error.value).endswith(
        "leave one of them out, or write what both say as values of dataset.roles"
    )


def test_a_part_may_be_swept_behind_the_whole_and_before_it_the_option_of_a_group():
    assert len(points("dataset.roles={a: user}", "dataset.roles.a=user,assistant")) == 2
    assert len(points("model=llama1b,llama3b", "model.revision=x")) == 2


def test_a_job_has_its_overrides_in_the_order_of_the_command_line():
    found = space(
        ["lora.r=8,16", "run=x", "lora.lora_alpha=1,2", "seed=3"], zipped=["lora.lora_alpha", "lora.r"]
    )
    assert [found.job(point) for point in found.points()] == [
        ["lora.r=8", "run=x", "lora.lora_alpha=1", "seed=3"],
        ["lora.r=16", "run=x", "lora.lora_alpha=2", "seed=3"],
    ]


def test_intervals_are_a_samplers():
    found = space(
        ["training.learning_rate=tag(log, interval(1e-5,1e-3))", "lora.r=interval(8,64)", "seed=range(1,9,2)"]
    )
    assert [axis.quantity for axis in found.axes] == [
        Quantity(1e-5, 1e-3, log=True),
        Quantity(8, 64, whole=True),
        Quantity(1, 7, step=2, whole=True),
    ]
    samples = list(found.samples())
    assert samples[0] == ["training.learning_rate=1e-05", "lora.r=8", "seed=1"]
    assert ["training.learning_rate=1e-05", "lora.r=64", "seed=1"] in samples
    assert len(samples) == 1 + 1 + 1 + 3


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_list_of_points_in_a_file(tmp_path, suffix):
    file = tmp_path / f"points.{suffix}"
    entries = [
        {"lora.r": 8, "training.learning_rate": 1e-4},
        {
            "lora": {"r": 16},
            "model": "llama1b",
            "model.new_tokens": ["<|a, b|>"],
            "dataset.system_prompt": "a, b: {c}",
        },
        {
            "training.max_grad_norm": 0.5,
            "model.revision": None,
            "dataset.shuffle": False,
            "dataset.columns": {"a": "b"},
        },
    ]
    file.write_text(json.dumps(entries))
    assert points(file=str(file)) == [
        ["lora.r=8", "training.learning_rate=0.0001"],
        ["lora.r=16", "model=llama1b", 'model.new_tokens=["<|a, b|>"]', 'dataset.system_prompt="a, b: {c}"'],
        [
            "++training.max_grad_norm=0.5",
            "model.revision=null",
            "dataset.shuffle=false",
            "++dataset.columns={a: b}",
        ],
    ]
    assert len(points("seed=1,2", file=str(file))) == 6
    with pytest.raises(UserError, match=r"points=.*: lora\.r is on the command line too"):
        points("lora.r=2", file=str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("", "expected a list of jobs"),
        ("[]", "an empty list; there is nothing to run"),
        ("lora.r: 8", "expected a list of jobs"),
        ("- 8", "entry 1: expected keys and values"),
        ("- {lora.r: 8}\n- {}", "entry 2: expected keys and values"),
        ("- {lora.r: 8}\n- {lora.r: 8}", "entry 2: the same as entry 1"),
        ("- {lora.r: 8, seed: 1}\n- {seed: 1, lora.r: 8}", "entry 2: the same as entry 1"),
        ("- {lora.r: 8", "points.yaml, line 1, column 3: a bracket that is not closed"),
        ("- {sweep.trials: 8}", "entry 1: sweep.trials says how the sweep is run"),
        ("- {hydra.job.chdir: true}", "entry 1: hydra.job.chdir says how the sweep is run"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_points_is_named(tmp_path, text, message):
    file = tmp_path / "points.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as error:
        points(file=str(file))
    assert str(error.value).startswith(f"sweep.points={file}")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "zipped", "message"),
    [
        (["lora.r=8,8"], [], "lora.r=8,8: lora.r=8 is there twice"),
        (["lora.r=range(8,8)"], [], "lora.r=range(8,8): stands for no value; there is nothing to run"),
        (["lora.r=8"], ["lora.r"], "sweep.zip: lora.r has no list of values on the command line"),
        (["lora.r=8,16"], ["lora.rank"], "sweep.zip: lora.rank has no list of values"),
        (["lora.r=8,16"], ["lora.r"], "sweep.zip=[lora.r]: a list goes hand in hand with another; name two keys or more"),
        (["lora.r=8,16", "seed=1,2"], ["lora.r", "seed", "lora.r"], "sweep.zip=[lora.r,seed,lora.r]: a list goes"),
        (["sweep.trials=1,2"], [], "sweep.trials=1,2: says how the sweep is run; give it one value"),
        (["lora.r=tag(lgo, interval(1,2))"], [], "lora.r=tag(lgo, interval(1,2)): the tag lgo means nothing here"),
        (["lora.r=tag(log, range(1,4))"], [], "lora.r=tag(log, range(1,4)): the tag log means nothing here; log does, around an interval"),
        (["lora.r=tag(log, choice(1,2))"], [], "lora.r=tag(log, choice(1,2)): the tag log means nothing here"),
        (["lora.r=interval(1,1)"], [], "lora.r=interval(1,1): an interval has two ends"),
        (["training.learning_rate=tag(log, interval(0,1))"], [], "an end at or below 0 has no logarithm; write one above 0"),
    ],
)  # fmt: skip
def test_what_is_no_space_is_named(words, zipped, message):
    with pytest.raises(UserError) as error:
        points(*words, zipped=zipped)
    assert message in str(error.value)
