"""What the command line says to a newcomer: words of other tools, quotes, flags, options, numbers out of
bounds, foreign targets, completion.
"""

import contextlib
import dataclasses
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from conftest import only_error
from hydra.core.override_parser.overrides_parser import OverridesParser

from chatbot_sft import UserError, bounds, cli, command_line, completion, text_files
from chatbot_sft import config as schema
from chatbot_sft.config import Config, ConfigLoader, aliases
from chatbot_sft.errors import near, not_yaml
from chatbot_sft.model import add_adapter
from chatbot_sft.targets import locate


def error_of(config):
    with pytest.raises(UserError) as caught:
        Config.from_mapping(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("section", "word", "value", "ours"),
    [
        ("training", "lr", 1e-4, "training.learning_rate"),
        ("training", "epochs", 3, "training.num_train_epochs"),
        ("training", "batch_size", 8, "training.per_device_train_batch_size"),
        ("training", "micro_batch_size", 8, "training.per_device_train_batch_size"),
        ("lora", "lora_r", 8, "lora.r"),
        ("model", "cutoff_len", 512, "model.max_seq_length"),
        ("model", "bits", 4, "model.load_in_4bit=true"),
        ("dataset", "type", "alpaca", "dataset.format"),
        ("dataset", "file", "a.json", "dataset.data_path"),
        ("", "val_set_size", 0.1, "dataset.eval_fraction=0.1"),
        ("save", "format", "gguf", "save.method"),
        ("", "gradient_checkpointing", True, "lora.use_gradient_checkpointing"),
        ("lora", "learningRate", 1e-4, "training.learning_rate"),
        ("", "neftune_noise_alpha", 5, "training.neftune_noise_alpha"),
        ("optimizer", "lr", 1e-4, "training.learning_rate"),
        ("data", "path", "a.json", "dataset.data_path"),
    ],
)
def test_words_of_other_tools_are_answered_with_ours(section, word, value, ours):
    known = error_of({section: {word: value}} if section else {word: value})
    assert known.endswith(f": no such key; did you mean {ours}?")


def test_every_alias_names_a_key_that_is_there():
    settings = [
        *aliases.SAME_VALUE,
        *(ours for words in aliases.IN_SECTION.values() for ours in words.values()),
    ]
    settings += [
        value.partition("=")[0] for values in aliases.OTHER_VALUE.values() for value in values.values()
    ]
    for key in settings:
        assert (
            schema.known_override(key)
            or schema.kind_of(key)
            or key == "training.max_grad_norm"
            or key == "training.neftune_noise_alpha"
        ), key
    assert len(aliases.WORDS) > 300


def test_a_secret_is_not_repeated():
    assert "hf_secret" not in error_of({"hf_token": "hf_secret"})


@pytest.mark.parametrize("word", ["lr", "epochs", "type", "file", "bits", "cutoff_len", "zzz"])
def test_nothing_far_away_is_suggested(word):
    assert near(word, [f.name for f in dataclasses.fields(schema.TrainingConfig)]) == []


def test_a_long_list_of_values_gives_way_to_the_nearest():
    error = error_of({"training": {"optim": "lion"}})
    assert re.fullmatch(
        r"training\.optim=lion: not one of \d\d that there are; did you mean lion_32bit\?", error
    )


def test_a_number_that_goes_through_is_finite():
    assert (
        error_of({"training": {"max_grad_norm": float("nan")}})
        == "training.max_grad_norm=nan: must be a finite number"
    )


def test_a_rank_above_every_layer_is_refused(tiny_llama):
    config = Config.from_mapping({"lora": {"r": 65}})
    with pytest.raises(UserError, match="the layers of this model are 64 wide"):
        bounds.check_model(config, tiny_llama)
    bounds.check_model(Config.from_mapping({"lora": {"r": 64}}), tiny_llama)


def test_a_batch_above_the_rows_is_refused_the_default_is_not():
    config = Config.from_mapping({"training": {"per_device_train_batch_size": 100_000}})
    with pytest.raises(UserError, match="a step of 400,000 conversations, and there are 36"):
        bounds.check_batch(config, 36, 1)
    bounds.check_batch(Config.from_mapping({}), 3, 1)


@pytest.mark.parametrize(
    "key", ["dataset.data_path", "model.name", "save.save_path", "dataset.split", "model.revision"]
)
def test_an_empty_text_is_refused(key):
    section, name = key.split(".")
    assert error_of({section: {name: " "}}).startswith(f"{key}: is empty")


@pytest.mark.parametrize(
    ("value", "read_as"), [(12e9, "a number"), (False, "yes or no"), (42798, "a number")]
)
def test_text_that_yaml_read_as_something_else_is_refused(value, read_as):
    assert f"read as {read_as}, and this is text; put it in quotes" in error_of(
        {"model": {"revision": value}}
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dataset": {"foo": {"bar": 1}}}, "dataset.foo: no such key; --help dataset lists them"),
        ({"zzz": 1}, "zzz: no such key; --help alone lists them"),
    ],
)
def test_a_key_that_means_nothing_is_told_where_the_others_are_listed(given, said):
    assert error_of(given) == said


def test_a_null_where_none_may_stand_is_said():
    assert error_of({"training": {"learning_rate": None}}).startswith("training.learning_rate: null")


def test_columns_as_text_are_written_out():
    assert error_of({"dataset": {"columns": "instruction:question"}}).endswith(
        "write 'dataset.columns={instruction: question}'"
    )


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"customer": "usr"}, ".customer=usr: not one of system, user, assistant, tool; did you mean user?"),
        ({"user": "customer"}, ".user=customer: the other way round: the file's word is the key, the role the value; write dataset.roles.customer=user"),
        ({"Agent": "assistant", "agent": "user"}, ".Agent: it is there twice, in other capitals, which do not count; leave one out"),
        ("customer", "=customer: expected names and values; write for instance 'dataset.roles={customer: user}'"),
        ({"customer": None}, "={'customer': None}: expected names and values"),
    ],
)  # fmt: skip
def test_roles_are_of_the_four(roles, said):
    assert error_of({"dataset": {"roles": roles}}) == f"dataset.roles{said}"


def test_the_roles_of_a_source_are_of_the_four():
    source = {"data_path": "a.json", "roles": {"agent": "bot"}}
    said = "dataset.roles.agent=bot: not one of system, user, assistant, tool"
    assert error_of({"dataset": {"sources": [source]}}) == said


@pytest.mark.parametrize("word", ["data_pth", "eval_fractoin", "path"])
def test_a_typo_beside_a_users_own_class_is_refused(word):
    error = error_of({"dataset": {"_target_": "my.Mine", word: 1}})
    assert f"dataset.{word}: no such key; did you mean dataset." in error
    assert f"dataset.mine.{word}" in error
    Config.from_mapping({"dataset": {"_target_": "my.Mine", "greeting": 1, "mine": {word: 1}}})


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "shutil.rmtree", "chatbot_sft.model.ModelLoader", "subprocess.call"],
)
def test_a_target_of_lora_takes_what_add_adapter_takes(target):
    with pytest.raises(UserError, match="with the parameters model, settings, engine"):
        locate("lora", target, allowed=["os", "builtins", "shutil", "subprocess"])


def test_a_users_own_adapter_function_is_taken(tmp_path, monkeypatch):
    (tmp_path / "own_adapter.py").write_text(
        "def mine(model, settings, engine, new_token_ids=(), **extra):\n    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("lora", "own_adapter.mine").__name__ == "mine"
    assert locate("lora", "chatbot_sft.model.add_adapter") is add_adapter


@pytest.mark.parametrize("target", ["my_loader.py", "./my_loader.Mine", "my..Mine", "Mine"])
def test_a_target_that_is_no_dotted_name(target):
    with pytest.raises(UserError, match=r"expected module\.Class"):
        locate("dataset", target)


@pytest.mark.parametrize(
    "value",
    ["my file (1).json", "dữ liệu.json", "[a.json", 'say "hi"(', "it's (2)", "a=b{", "C:\\x (1)\\", "Hello!"],
)
def test_a_value_that_hydra_cannot_read_is_quoted_so_that_it_can(value):
    error = command_line.not_understood(f"dataset.data_path={value}", [f"dataset.data_path={value}"])
    (written,) = shlex.split(error.partition("quote it: ")[2])
    assert OverridesParser.create().parse_override(written).value() == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora.r=8"], "--lora.r=8: settings are written without dashes, as key=value: lora.r=8"),
        (
            ["--learning_rate", "1e-4"],
            (
                "--learning_rate 1e-4: settings are written without dashes, as key=value:"
                " training.learning_rate=1e-4"
            ),
        ),
        (
            ["--load_in_4bit", "lora.r=8"],
            "--load_in_4bit: settings are written without dashes, as key=value: model.load_in_4bit=true",
        ),
        (["--num_gpus=2"], "--num_gpus=2: no such flag; several GPUs: torchrun"),
        (["--multrun"], "--multrun: no such flag; did you mean --multirun?"),
        (["train.yaml"], "train.yaml: not understood as key=value; a file of settings is an overlay"),
        (["--config", "a/my.yaml"], "--config a/my.yaml: a file of settings is an overlay: put it into a fo"),
        (["--config=my.yml", "lora.r=8"], "--config my.yml: a file of settings is an overlay"),
        (["--config"], "--config: no such flag; a file of settings is an overlay"),
        (["config=my.yaml"], "config: no such key; a file of settings is an overlay"),
        (["--config-path", "my.yaml"], "--config-path my.yaml: a file of settings is an overlay"),
        (["-c", "my.yaml"], "-c my.yaml: a file of settings is an overlay"),
        (["--help", "my.yaml"], "my.yaml: not understood as key=value; a file of settings is an overlay"),
        (["--help", "bogus"], "--help bogus: no such key; --help alone lists them"),
        (["--help", "lorra"], "--help lorra: no such key; did you mean lora?"),
        (["save.metod", "--help"], "--help save.metod: no such key; did you mean save.method?"),
        (["--help", "lernin_rate"], "--help lernin_rate: no such key; did you mean training.learning_rate?"),
        (["--help", "lora.q"], "--help lora.q: no such key; --help lora lists them"),
        (["check"], "check: not understood as key=value; write task=check"),
        (
            ["lora.r", "=", "8"],
            "lora.r: not understood as key=value; no space stands beside the equals sign: lora.r=8",
        ),
        (
            ["model=glob([a-l]*)"],
            "model=glob([a-l]*): not understood as key=value; quote it: 'model=glob(\"[a-l]*\")'",
        ),
        (
            ["-m", "lora.r=8,", "16"],
            "lora.r=8,: not understood as key=value; no space stands beside a comma: lora.r=8,16",
        ),
        (
            ["-m", "seed=1", "lora.r=8", ",16,", "32"],
            ",16,: not understood as key=value; no space stands beside a comma: lora.r=8,16,32",
        ),
        (
            ["-m", "model=llama1b,", "llama3b"],
            "model=llama1b,: not understood as key=value; no space stands beside a comma: model=llama1b,llama3b",
        ),
        (
            ["-m", "training.optim=choice(adamw_8bit,", "adamw_torch)"],
            "training.optim=choice(adamw_8bit,: not understood as key=value;"
            " no space stands beside a comma: 'training.optim=choice(adamw_8bit,adamw_torch)'",
        ),
        (
            ["-m", "lora.r=range(8,", "32,", "8)"],
            "lora.r=range(8,: not understood as key=value; no space stands beside a comma: 'lora.r=range(8,32,8)'",
        ),
        (
            ["-m", "dataset.data_path=choice(a (1).json,b.json)"],
            "dataset.data_path=choice(a (1).json,b.json): not understood as key=value; quote it:"
            " 'dataset.data_path=choice(\"a (1).json\",b.json)'",
        ),
        (
            ["dataset.system_prompt=Hi,", "there"],
            "dataset.system_prompt=Hi,: not understood as key=value; quote it: 'dataset.system_prompt=\"Hi, there\"'",
        ),
        (
            ["task=evaluate", "outputs/two", "evaluation.golden=my.jsonl"],
            "outputs/two: not understood as key=value; a run is named with run=outputs/two",
        ),
        (
            ["outputs/my run", "task=replay"],
            "outputs/my run: not understood as key=value; a run is named with 'run=outputs/my run'",
        ),
        (
            ["task=replay", "long " * 100],
            f"{'long ' * 100}: not understood as key=value; if it belongs to task=replay",
        ),
        (["task=export", "save=gguf", "."], ".: not understood as key=value; a run is named with run=."),
        (
            ["task=verify", "run=outputs/my", "files/two"],
            "files/two: not understood as key=value; if it belongs to run=outputs/my, quote both:",
        ),
        (
            ["task=train", "outputs/two"],
            "outputs/two: not understood as key=value; if it belongs to task=train, quote both:",
        ),
        (
            ["-m", "lora.r=8,16", "--dry-run"],
            "--dry-run: settings are written without dashes, as key=value: sweep.d",
        ),
        (["--dry-run"], "--dry-run: settings are written without dashes, as key=value: task=check"),
        (["-m", "lora.r=8,16", "dry_run=true"], "dry_run: no such key; did you mean sweep.dry_run=true?"),
        (
            ["-m", "model=[smollm2,llama1b]"],
            "model=[smollm2,llama1b]: is one job of all of these; write model=smollm2,llama1b for a job each",
        ),
        (
            ["-m", "training.learning_rate=[1e-4,1e-3]"],
            "training.learning_rate=[1e-4,1e-3]: takes no list; write values behind commas, without brackets:"
            " training.learning_rate=1e-4,1e-3",
        ),
        (
            ["dataset.columns={a:", "b}"],
            "dataset.columns={a:: not understood as key=value; quote it: 'dataset.columns={a: b}'",
        ),
    ],
)
def test_a_word_that_is_no_setting(words, message):
    with pytest.raises(UserError) as caught:
        command_line.check(words)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("lora.r=8 -m +model=llama3b", "-m lora.r=8 model=llama3b"),
        ("training.max_grad_norm=1 +experiment=quick", "++training.max_grad_norm=1 experiment=quick"),
        ("dataset.columns={a:b} ++lora.r=8 lora.typo=1", "++dataset.columns={a:b} ++lora.r=8 ++lora.typo=1"),
        ("model.revision=42798,main -m", '-m model.revision="42798",main'),
        ("--info plugins", "--info plugins"),
        ("-cn mine +experiment=quick", "-cn mine +experiment=quick"),
        ("-sc query=fish", "-sc query=fish"),
    ],
)
def test_words_as_hydra_takes_them(typed, taken):
    words = typed.split()
    assert command_line.for_hydra(words, command_line.check(words)) == taken.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora=dora,rslora"], "lora=dora,rslora: several values are several runs; add -m"),
        (["lora.target_modules=q_proj,v_proj"], "lora.target_modules=q_proj,v_proj: several values"),
        (["~lora"], "~lora: a section cannot be left out"),
        (["lora=null"], "lora: null"),
        (["training="], "training=: names no option (there are default)"),
        (["model=unsloth/Llama-3"], "model=unsloth/Llama-3: no such option"),
        (["hydra/sweeper=optuna"], "hydra/sweeper=optuna: not installed; `pip install hydra-optuna-sweeper`"),
        (
            ["hydra/launcher=joblib"],
            "hydra/launcher=joblib: not installed; `pip install 'hydra-joblib-launcher<2,>=1.2'`",
        ),
        (["--config-dir", "absent"], "--config-dir: "),
        (["-cn", "typo"], "--config-name typo: there is no typo.yaml"),
    ],
)
def test_options_and_folders_in_our_own_words(launch, arguments, message):
    assert only_error(launch(*arguments)).startswith(message)


def test_a_plus_before_what_is_there_is_read(launch):
    shown = launch("+model=llama3b", "+lora.r=8", "model.revision=12e4567", "--cfg", "job")
    assert "name: unsloth/Llama-3.2-3B-Instruct" in shown.stdout
    assert "  r: 8\n" in shown.stdout
    assert "12e4567" in shown.stdout


def test_version_is_ours(launch):
    assert launch("--version").stdout.startswith("chatbot_sft ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n\tmax_steps: 3\n", "line 3: a tab"),
        ("training:\n  max_steps: 3\n  max_steps: 4\n", "max_steps is there twice"),
        ("training:\n", "training: null, or nothing under `training:` in a file"),
    ],
)
def test_habits_in_a_users_file_are_named(launch, tmp_path, text, message):
    overlay = tmp_path / "mine" / "experiment" / "my.yaml"
    overlay.parent.mkdir(parents=True)
    overlay.write_text(f"# @package _global_\n{text}")
    assert message in only_error(launch("--config-dir", "mine", "+experiment=my"))


OVERLAY = "# @package _global_\ntraining:\n  max_steps: 7\ndataset:\n  system_prompt: 'Je suis à Orléans'\n"


@pytest.mark.parametrize(
    ("entries", "way"),
    [
        (["a"], "experiment/a → experiment/a"),
        (["/experiment: [quick, a@_here_]"], "experiment/a → experiment/a"),
        (["/experiment: quick"], None),
        (["b", "override /model: a"], "experiment/a → experiment/b → experiment/a"),
        (["override /experiment: b"], "experiment/a → experiment/b → experiment/a"),
    ],
)
def test_an_overlay_that_includes_itself_is_named(tmp_path, entries, way):
    for name, listed in (("a", entries), ("b", ["/experiment: a"])):
        file = tmp_path / "experiment" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(["# @package _global_", "defaults:", *(f"- {entry}" for entry in listed)]))
    if way is None:
        text_files.check_options(tmp_path)
        return
    with pytest.raises(UserError) as caught:
        text_files.check_options(tmp_path)
    place = tmp_path / "experiment" / "a.yaml"
    assert (
        str(caught.value)
        == f"{place}: its defaults list includes itself ({way}); take one of these names out"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"])
def test_a_file_of_a_windows_editor_is_read_or_named(tmp_path, encoding):
    """From a --config-dir and from Python; Hydra does not see a package line behind a byte order mark."""
    file = tmp_path / "mine" / "experiment" / "my.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(OVERLAY, encoding=encoding)
    said = (
        f"{file}: not UTF-8 text (byte {'0); it looks like UTF-16' if '16' in encoding else '80)'}; save the"
        " file as UTF-8"
    )
    if encoding == "utf-8-sig":
        with pytest.raises(
            UserError, match=r"my\.yaml: a byte order mark stands before its `# @package` line"
        ):
            text_files.check_options(tmp_path / "mine")
        file.write_text(OVERLAY.partition("\n")[2], encoding=encoding)
    for read in (lambda: text_files.check_options(tmp_path / "mine"), lambda: ConfigLoader.load_config(file)):
        if encoding.startswith("utf-8"):
            found = read()
            assert found is None or (found["training"]["max_steps"], found["dataset"]["system_prompt"]) == (
                7,
                "Je suis à Orléans",
            )
        else:
            with pytest.raises(UserError) as error:
                read()
            assert str(error.value) == said


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("latin-1", r"line 5: not Python: \(unicode error\).*; save the file as UTF-8$"),
        ("utf-16", r"not Python: .*null bytes; save the file as UTF-8$"),
    ],
)
def test_a_class_of_ones_own_from_a_windows_editor_is_read_or_named(tmp_path, monkeypatch, encoding, said):
    source = "from chatbot_sft import DatasetLoader\n\n\nclass Mine(DatasetLoader):\n    'à'\n"
    name = f"written_in_{encoding.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(source, encoding=encoding)
    monkeypatch.syspath_prepend(tmp_path)
    if said is None:
        assert locate("dataset", f"{name}.Mine").__doc__ == "à"
        return
    with pytest.raises(UserError, match=rf"^dataset\._target_={name}\.Mine: .*{name}.*{said}"):
        locate("dataset", f"{name}.Mine")


@pytest.fixture
def programs(tmp_path):
    """An environment whose python and chatbot-sft complete as ours do, and otherwise say what they were
    called with.
    """
    for name, module in (("python", ""), ("chatbot-sft", "-m chatbot_sft")):
        runs = f'exec "{sys.executable}" {module} "$@"'
        (tmp_path / name).write_text(f'#!/bin/sh\ncase "$*" in *query=*) {runs} ;; esac\necho "called $*"\n')
        (tmp_path / name).chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}


PROGRAMS = pytest.mark.parametrize("program", ["python -m chatbot_sft", "chatbot-sft"])


@PROGRAMS
def test_bash_completes(programs, program):
    """The script's own function in a real bash, as readline calls it."""
    line = f"{program} model=lla"
    call = (
        f"COMP_WORDS=({program.split()[0]}); COMP_LINE='{line}'; COMP_POINT={len(line)}; _chatbot_sft; printf"
        " '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", f"{completion.SCRIPTS['bash']}\n{call}"], capture_output=True, text=True, env=programs
    )
    assert done.stdout.split() == ["llama1b", "llama3b", "llama8b"], done.stderr


@PROGRAMS
@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_completes(programs, program):
    def candidates(line):
        told = f"{completion.SCRIPTS['fish']}\ncomplete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", told], capture_output=True, text=True, env=programs, timeout=600
        )
        return done.stdout.split(), done.stderr

    assert candidates(f"{program} seed=1 model=lla") == (
        ["model=llama1b", "model=llama3b", "model=llama8b"],
        "",
    )
    assert not [found for found in candidates("python model=lla")[0] if "llama" in found]


@PROGRAMS
@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes(programs, program, tmp_path):
    """Typed on a pseudo-terminal: one candidate is written out, with a space behind it only where it is
    whole.
    """
    (tmp_path / "script").write_text(completion.SCRIPTS["zsh"])
    shell, terminal = pty.fork()
    if shell == 0:
        os.execvpe("zsh", ["zsh", "-f", "-i"], programs)
    try:
        typed = [
            "source ./script",
            f"{program} seed=1 lora=dor\t+x=1",
            f"{program} lora.use_rs\ttrue",
            "exit",
        ]
        os.write(terminal, "".join(f"{line}\n" for line in [f"cd {tmp_path}", *typed]).encode())
        said = b""
        with contextlib.suppress(OSError):  # the end of a pseudo-terminal
            while select.select([terminal], [], [], 300)[0]:
                said += os.read(terminal, 65536)
    finally:
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
    begin = "" if program == "chatbot-sft" else "-m chatbot_sft "
    called = [
        line
        for line in said.decode(errors="replace").replace("\r", "").splitlines()
        if line.startswith("called ")
    ]
    assert called == [
        f"called {begin}seed=1 lora=dora +x=1",
        f"called {begin}lora.use_rslora=true",
    ], said.decode(errors="replace")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_asks_for_its_script(shell, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chatbot-sft", "-sc", f"install={shell}"])
    cli.main()
    said = capsys.readouterr().out
    assert said.strip() == completion.SCRIPTS[shell]
    assert "-sc query=fish" in said and "chatbot-sft" in said and "chatbot_sft" in said


@pytest.mark.parametrize(
    ("text", "place"),
    [("a:\n  b: [1, 2\nc: {d: 4}\n", "line 2, column 6"), ("a: {b: 1\nc: 2\n", "line 1, column 4")],
)
def test_a_bracket_that_is_not_closed_is_named_where_it_was_opened(text, place):
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load(text)
    assert f", {place}: a bracket that is not closed; line" in not_yaml(caught.value)
