"""The typed schema: every key the launcher knows, its default, and the checks that run before anything heavy is imported.

The defaults here are those of the original `configs/sft.yaml`. `conf/` states them again where a user looks for them and adds the embedded model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Union

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft import aliases, bounds, effects, optimization, sft_arguments, text_files
from chatbot_sft.errors import UserError, did_you_mean, listed, misspelled, near, not_yaml, question
from chatbot_sft.precedence import RIVALS, brought, ended_by
from chatbot_sft.report import loggers

OUR_PACKAGE = "chatbot_sft."
FORMATS = ("auto", "json", "messages", "sharegpt", "alpaca", "prompt_completion", "text")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR = "all-linear"
# Those of PEFT's `LoraConfig.init_lora_weights` that need nothing but the weights; pissa_niter_16 and the like are taken too.
LORA_INITS = (True, False, "gaussian", "orthogonal", "olora", "pissa", "loftq", "mica")
METHODS = ("lora", "merged_16bit", "merged_4bit", "gguf")
# What the gguf package and llama.cpp's quantiser make without a matrix of importances.
QUANTIZATIONS = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_xs", "iq4_nl",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
LORA_INITS_FROM_DATA = ("eva", "corda", "lora_ga")


@dataclass
class PathsConfig:
    output_dir: str = "outputs"  # the run directory
    data_dir: str = "data"


@dataclass
class BringsConfig:
    """What an option of `conf/model` sets in place of defaults; see `precedence`."""

    only_for: str | None = None  # the model.name that it is meant for; null: whatever the name
    load_in_4bit: bool | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    target_modules: Any = None


@dataclass
class ModelConfig:
    _target_: str = "chatbot_sft.model.ModelLoader"
    name: str = "unsloth/Llama-3.2-3B-Instruct"  # hub id, local folder, or "smollm2", the embedded model
    revision: str | None = None  # branch, tag or commit of a hub id
    engine: str = "auto"  # auto | unsloth | transformers
    max_seq_length: int = 2048  # tokens; longer conversations are cut
    dtype: str | None = None  # float16 | bfloat16 | float32; null: what the hardware does best
    load_in_4bit: bool = True  # QLoRA: the frozen base in 4 bits (bitsandbytes nf4)
    trust_remote_code: bool = False  # run Python code that comes with a hub model
    adapter: str | None = None  # go on from an earlier adapter: a run directory, an export or an adapter's folder; its rank and targets are kept
    chat_template: str | None = None  # a Jinja file in place of the tokenizer's own chat template
    new_tokens: list[str] | None = None  # special tokens added to the tokenizer; their embeddings are trained
    token: str | None = None  # stays null: set HF_TOKEN in the environment
    brings: dict[str, Any] = field(default_factory=dict)  # a BringsConfig: {max_steps: 24, learning_rate: 2e-3}


@dataclass
class LoraConfig:
    _target_: str = "chatbot_sft.model.add_adapter"
    r: int = 16  # rank; 0 trains every weight instead (full fine-tuning)
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: Any = field(default_factory=lambda: list(PROJECTIONS))  # names, or "all-linear": every linear layer of the language model
    bias: str = "none"  # none | all | lora_only
    use_rslora: bool = False  # scale by alpha / sqrt(r)
    use_dora: bool = False
    modules_to_save: list[str] | None = None  # trained in full beside the adapter: embed_tokens, lm_head
    init_lora_weights: Union[bool, str] = True  # noqa: UP007 (as below); true | false | gaussian | orthogonal | olora | pissa | pissa_niter_16 | loftq | mica
    loftq_bits: int = 4  # 4 | 8: what init_lora_weights=loftq quantises to
    loftq_iter: int = 1
    use_gradient_checkpointing: Union[bool, str] = "unsloth"  # noqa: UP007 (OmegaConf 2.3 reads no bool | str); unsloth | true | false


@dataclass
class SourceConfig:
    """One part of a mixture. What is not said here is as in `dataset`."""

    data_path: str = MISSING
    format: str | None = None
    columns: dict[str, str] | None = None
    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    weight: float | None = None  # share of the mixture
    count: int | None = None  # rows of it; more than there are repeats them


@dataclass
class DatasetConfig:
    _target_: str = "chatbot_sft.data.DatasetLoader"
    data_path: str = "data/thinking_teacher_conversations.json"  # file, folder, glob or hub id
    format: str = "json"  # json and auto: told from the content | messages | sharegpt | alpaca | prompt_completion | text
    split: str = "train"  # of a hub id, or of a folder whose files are called by their splits
    config_name: str | None = None  # of a hub id
    revision: str | None = None  # of a hub id
    text_field: str = "text"  # column of ready-made text
    message_field: str = "messages"
    columns: dict[str, str] = field(default_factory=dict)  # a format's field → the file's column: {instruction: question}
    sources: list[Any] | None = None  # a mixture of SourceConfig, in place of data_path
    eval_data_path: str | None = None  # held-out conversations of their own, in place of eval_fraction
    eval_fraction: float = 0.1  # share of the conversations held out for evaluation
    max_rows: int | None = None
    shuffle: bool = True
    system_prompt: str | None = None  # for rows without one
    thinking: str = "keep"  # keep | drop | last
    train_on: str = "assistant"  # assistant | last_assistant | all
    overflow: str = "truncate"  # rows over model.max_seq_length: truncate | drop | error | split
    on_bad_row: str = "auto"  # error | drop | warn; auto: error above 1% bad rows, drop below
    max_row_mb: float = 10.0  # millions of characters that one row of a file may have
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)  # given to the template: {enable_thinking: false}

    @property
    def mixture(self) -> list[SourceConfig]:
        """The training sources: `sources` with the gaps filled in from here, or `data_path` alone."""
        return [self.source(SourceConfig(**given)) for given in self.sources or [{"data_path": self.data_path}]]

    def source(self, item: SourceConfig) -> SourceConfig:
        """`item` with what it leaves open taken from here."""
        own = {name: getattr(item, name) if getattr(item, name) is not None else getattr(self, name) for name in _INHERITED}
        return replace(item, **own)


_INHERITED = ("format", "columns", "config_name", "split", "revision")


@dataclass
class TrainingConfig:
    _target_: str = "chatbot_sft.train.SFTTrainerWrapper"
    output_dir: str = "checkpoints"
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 4
    batch_layout: str = "auto"  # auto: run the steps as is fastest here | as_configured
    memory_margin: float = 0.1  # share of the card that the fastest layout has to leave free
    packing: bool = False  # fill sequences of model.max_seq_length with whole conversations
    max_steps: int | None = 30  # this or num_train_epochs
    num_train_epochs: float | None = None
    learning_rate: float = 2.0e-4
    lr_scheduler_type: str = "linear"
    warmup_steps: float | None = 5  # optimizer steps; below 1: a share of the run
    warmup_ratio: float | None = None  # the same share under its older name, in place of warmup_steps
    weight_decay: float = 0.01
    optim: str = "adamw_8bit"
    logging_steps: float = 1  # optimizer steps; below 1: a share of the run
    report_to: Any = "none"  # none | tensorboard | wandb | mlflow | trackio, or a list of them
    resume: str = "auto"  # auto: from the run directory's last checkpoint | never | a checkpoint or run directory to go on from
    save_steps: float = 0.1  # optimizer steps between checkpoints; below 1: a share of the run
    save_total_limit: int | None = 2  # checkpoints kept, the newest and the best always; null: all
    stop_on_divergence: bool = True  # stop where the loss is not finite or leaves the rails
    response_only: bool = True  # loss on the assistant's tokens alone; false: the same as dataset.train_on=all
    sample_prompts: list[str] | None = None  # null: the first questions of three held-out conversations
    sample_max_new_tokens: int = 96  # 0: no sample answers
    eval_steps: float | None = None  # optimizer steps between evaluations, below 1 a share of the run; null: before and after training only
    per_device_eval_batch_size: int | None = None  # null: as in training
    early_stopping_patience: int | None = None  # evaluations without a better held-out loss before training stops; null: it does not
    early_stopping_threshold: float = 0.0  # nats that count as better
    load_best_model_at_end: bool = False  # end with the weights of the lowest held-out loss, not with the last

    @property
    def warm_up(self) -> float:
        """Optimizer steps; below 1 a share of the run."""
        return self.warmup_ratio if self.warmup_ratio is not None else self.warmup_steps or 0

    @property
    def loggers(self) -> list[str]:
        """`report_to` as a list: null and "none" are [], one name is a list of one.

        Raises:
            UserError: a name that is no logger.
        """
        names = self.report_to if isinstance(self.report_to, list) else [self.report_to]
        if names in ([None], ["none"]):
            return []
        if "all" in names:
            raise UserError("training.report_to=all: name the loggers, for instance training.report_to=[tensorboard,mlflow]")
        for name in names:
            one_of("training.report_to", name, (*loggers.MODULES, *loggers.OTHERS) if len(names) > 1 else ("none", *loggers.MODULES, *loggers.OTHERS))
        return list(dict.fromkeys(names))


@dataclass
class SaveConfig:
    _target_: str = "chatbot_sft.save.ModelSaver"
    method: Any = "merged_16bit"  # lora | merged_16bit | merged_4bit | gguf | none, or a list of them
    save_path: str = "checkpoints/final_model"  # with several methods each has a folder in it
    gguf_quantization: Any = "q4_k_m"  # f32 | f16 | bf16 | q8_0 | q6_k | q5_k_m | q4_k_m | …, or a list of them
    verify: bool = True  # reload each export and hold it against the trained model
    overwrite: bool = False  # replace what is at save_path
    llama_cpp_dir: str | None = None  # a llama.cpp of your own, whose llama-quantize is used
    push_to_hub: bool = False
    hub_model_id: str | None = None  # org/name
    hub_private: bool = True
    hub_revision: str | None = None  # branch

    @property
    def methods(self) -> list[str]:
        """`method` as a list, the adapter first: what comes later may fail. "none" is [].

        Raises:
            UserError: a name that is no method.
        """
        names = self.method if isinstance(self.method, list) else [self.method]
        if names == ["none"]:
            return []
        for name in names:
            one_of("save.method", name, METHODS if len(names) > 1 else (*METHODS, "none"))
        return [name for name in METHODS if name in names]

    @property
    def quantizations(self) -> list[str]:
        """`gguf_quantization` as a list.

        Raises:
            UserError: a name that is no quantisation.
        """
        names = self.gguf_quantization if isinstance(self.gguf_quantization, list) else [self.gguf_quantization]
        for name in names:
            one_of("save.gguf_quantization", name.lower() if isinstance(name, str) else name, QUANTIZATIONS)
        return list(dict.fromkeys(name.lower() for name in names))


@dataclass
class Config:
    """Every setting of a run. `from_mapping` is the only way in: it checks keys, types and what must fit together."""

    task: str = "train"
    run: str | None = None  # of task=export: the directory of the run that is exported
    seed: int = 3407
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    sft_arguments: dict[str, Any] = field(default_factory=dict)  # keys of `training` that TRL's SFTConfig takes as they are

    @property
    def full_finetuning(self) -> bool:
        return self.lora.r == 0

    @property
    def lora_changes_base(self) -> bool:
        """Whether the adapter's initialisation takes its part out of the base weights, so that base plus adapter begin as the model was."""
        init = self.lora.init_lora_weights
        return isinstance(init, str) and (init in ("olora", "loftq") or init.startswith("pissa"))

    @property
    def brought(self) -> list[str]:
        """What the model's option brought and nobody changed, as "key=value"."""
        found = brought(self.model.name, self.model.brings, self.lora.r)
        used = {f.name: getattr(section, f.name) for section in (self.model, self.lora, self.training) for f in fields(section) if f.name in found}
        return [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in found.items() if used[key] == value]

    @property
    def effective_batch_size(self) -> int:
        """Conversations per optimizer step on one device."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any] | DictConfig | Config) -> Config:
        """Check a composed or hand-written configuration and fill in the defaults.

        Other keys of a section whose `_target_` is the user's own class are that class's business, but for those that certainly meant one of ours.

        Raises:
            UserError: an unknown key (with the nearest known one), a value of the wrong type or out of range, settings that contradict.
        """
        if isinstance(config, Config):
            return config
        plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
        sections = _schemas()
        scalars = [f.name for f in fields(cls) if f.name not in sections and f.name != "sft_arguments"]
        for key in plain:
            if key not in sections and key not in scalars:
                raise UserError(_no_such_key("", str(key), plain[key], [*sections, *scalars]))
        brings = _brought(plain)
        values: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for name, schema in sections.items():
            section = plain.get(name) or {}
            if not isinstance(section, Mapping):
                raise UserError(f"{name}: expected keys and values, got {section!r}; an option is chosen on the command line: {name}=OPTION")
            known = [f.name for f in fields(schema)]
            if name == "training":
                section = {**dict.fromkeys(ended_by(section)), **section}
            section = {**{key: value for key, value in brings.items() if key in known}, **section}
            values[name] = _typed(name, schema, {key: value for key, value in section.items() if key in known})
            unknown = {key: value for key, value in section.items() if key not in known}
            if name == "training":
                extra = {key: value for key, value in unknown.items() if key in sft_arguments.known()}
                unknown = {key: value for key, value in unknown.items() if key not in extra}
            ours = [*(key for key in known if key != "_target_"), *(sft_arguments.known() if name == "training" and unknown else ())]
            own_class = not values[name].get("_target_", OUR_PACKAGE).startswith(OUR_PACKAGE)
            for key, value in unknown.items():
                if not own_class:
                    raise UserError(_no_such_key(name, str(key), value, ours))
                if _for_another(name, str(key), value, ours):
                    force = f"a key of your own class that is called so goes into a mapping: {name}.mine.{key}"
                    raise UserError(f"{_no_such_key(name, str(key), value, ours)} ({force})")
        sources = values["dataset"].get("sources")
        if sources is not None:
            values["dataset"]["sources"] = [_source(number, given) for number, given in enumerate(sources)]
        sft_arguments.check(extra)
        root = _typed("", cls, {key: plain[key] for key in scalars if key in plain})
        built = cls(**root, **{name: schema(**values[name]) for name, schema in sections.items()}, sft_arguments=extra)
        for section, key in ConfigLoader.PATH_KEYS:
            holder = getattr(built, section)
            if getattr(holder, key).startswith("~/"):  # inside of key=value no shell expands it
                setattr(holder, key, str(Path(getattr(holder, key)).expanduser()))
        check_values(built)
        return built

    def to_dict(self) -> dict[str, Any]:
        """The same settings as a plain nested dictionary, in the shape of the YAML files."""
        plain = asdict(self)
        plain["training"].update(plain.pop("sft_arguments"))
        return plain


SECTIONS = ("paths", "model", "lora", "dataset", "training", "save")


def _schemas() -> dict[str, type]:
    """Section name → its dataclass."""
    return {f.name: f.default_factory for f in fields(Config) if f.name in SECTIONS}


def _brought(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What `model.brings` of this configuration comes to, checked."""
    model, lora = (plain.get(name) if isinstance(plain.get(name), Mapping) else {} for name in ("model", "lora"))
    given = model.get("brings") or {}
    known = {f.name for f in fields(BringsConfig)}
    for key in given:
        if key not in known:
            raise UserError(f"model.brings.{key}: a model's option may bring {', '.join(sorted(known))}{did_you_mean(key, known)}")
    return brought(model.get("name"), _typed("model.brings", BringsConfig, dict(given)), lora.get("r"))


def known_override(key: str) -> bool:
    """Whether `key` of an override is in the schema, or Hydra's own business: then Hydra itself accepts it as it stands."""
    section, _, name = key.partition(".")
    schemas = _schemas()
    if section in schemas:
        # Hydra takes a mapping such as dataset.columns={…} only as an addition.
        return not name or name in {f.name for f in fields(schemas[section]) if f.default_factory is not dict}
    return section in {f.name for f in fields(Config)} or section == "hydra" or "/" in key


def kind_of(key: str) -> str:
    """The type of `section.key` as the schema writes it ("str | None"), empty where it is not in the schema."""
    section, _, name = key.rpartition(".")
    schema = _schemas().get(section) if section else Config
    return next((str(f.type) for f in fields(schema) if f.name == name), "") if schema else ""


def meant(section: str, key: str, value: Any = None) -> aliases.Meant | None:
    """What an unknown `key` certainly means, whatever section or none it came with: a word of another tool, or a key that stands elsewhere."""
    if isinstance(value, Mapping) and value:  # optimizer.lr, train.epochs: the word is at the end
        inner, held = next(iter(value.items()))
        home = aliases.SECTIONS.get(key, section)
        return aliases.Meant(f"{home}.{inner}") if known_override(f"{home}.{inner}") else meant(home, str(inner), held)
    found = aliases.look_up(section, key, value)
    if found and found.setting:
        return found
    elsewhere = [f"{name}.{f.name}" for name, schema in _schemas().items() for f in fields(schema) if f.name == key and key != "_target_"]
    if elsewhere:
        return aliases.Meant(elsewhere[0])
    if key in sft_arguments.known():
        instead = sft_arguments.MANAGED.get(key, f"training.{key}")
        return aliases.Meant(instead) if instead else aliases.Meant(note="the launcher sets this itself; leave it out")
    return found


def _no_such_key(section: str, key: str, value: Any, known: list[str]) -> str:
    """The text for a key that is not there; `section` is empty at the top, `known` what stands beside it."""
    where = f"{section}.{key}" if section else key
    if key == "experiment" and not section:
        return "experiment: an overlay has to begin with the line `# @package _global_`, so that its keys go to the top"
    if key == section:
        return f"{where}: no such key; a file in {section}/ holds the keys of {section} themselves, without `{section}:` above them"
    found = None if isinstance(value, Mapping) and misspelled(key, known) else meant(section, key, value)
    if found is None and not misspelled(key, known):
        # A typo in a key of another section, or in another tool's word.
        other = misspelled(key, [*(f.name for schema in _schemas().values() for f in fields(schema)), *aliases.WORDS])
        found = meant(section, other[0], value) if other else None
    if found:
        return f"{where}: no such key" + (question([found.setting]) if found.setting else f"; {found.note}")
    names = near(key, [name for name in known if not name.startswith("_")])
    hint = question([f"{section}.{name}" if section else name for name in names])
    return f"{where}: no such key{hint or '; --cfg job shows those that there are'}"


def _for_another(section: str, key: str, value: Any, known: list[str]) -> bool:
    """Whether `key` of a user's own class must have meant one of ours: it is spelled like one, or is another tool's word for one of this section."""
    found = aliases.look_up(section, key, value)
    return bool(misspelled(key, known)) or (found is not None and found.setting.startswith(f"{section}."))


def _source(number: int, given: Any) -> dict[str, Any]:
    """One entry of `dataset.sources`, checked."""
    where = f"dataset.sources[{number}]"
    if not isinstance(given, Mapping) or "data_path" not in given:
        raise UserError(f"{where}={given!r}: expected {{data_path: …}}, with format, columns, weight or count where they are needed")
    known = [f.name for f in fields(SourceConfig)]
    for key, value in given.items():
        if key not in known:
            found = aliases.look_up("dataset", str(key), value)
            ours = found.setting.removeprefix("dataset.") if found else ""
            raise UserError(f"{where}.{key}: no such key{question([ours]) if ours in known else did_you_mean(str(key), known)}")
    return asdict(SourceConfig(**_typed(where, SourceConfig, dict(given))))


def _typed(section: str, schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values` converted to the types of the dataclass `schema`, as OmegaConf converts them ("1e-4" is a float, "yes" is no int).

    Text is not converted: YAML has read `0123456`, `12e4567` and `no` as something else before we see them.
    """
    typed = OmegaConf.structured(schema)
    kinds = {f.name: str(f.type) for f in fields(schema)}
    for key, value in values.items():
        where = f"{section}.{key}" if section else key
        if value == MISSING:
            raise UserError(f"{where}: not set; give it a value, for instance {where}=…")
        _check_kind(where, kinds[key], value)
        try:
            typed[key] = value
        except OmegaConfBaseException as error:
            hint = f"; write {where}=[{value}]" if "ListConfig" in str(error) else ""
            if key in ("data_path", "eval_data_path") and isinstance(value, list):
                files = ", ".join(f"{{data_path: {file}}}" for file in value[:3])
                raise UserError(f"{where}: a list is not read; name a folder or a glob, or write dataset.sources=[{files}]") from None
            raise UserError(f"{where}={value!r}: {str(error).splitlines()[0]}{hint}") from None
    plain = OmegaConf.to_container(typed)
    return {key: plain[key] for key in values}


def _check_kind(where: str, kind: str, value: Any) -> None:
    """What OmegaConf would convert in silence, or say in its own words; `kind` is the annotation in the schema."""
    optional = kind.endswith("| None")
    if value is None and not optional and kind != "Any":
        raise UserError(f"{where}: null (or nothing after the colon in a file); give it a value, or leave the key out")
    if kind.startswith("str") and isinstance(value, str) and not value.strip():
        raise UserError(f"{where}: is empty; give it a value{', or null' if optional else ''}")
    if kind.startswith("str") and isinstance(value, (bool, int, float)):
        raise UserError(f"{where}={aliases.plain(value)}: read as {_READ_AS[type(value)]}, and this is text; put it in quotes in the file")
    if kind.startswith("dict") and isinstance(value, str):
        pairs = re.findall(r"([\w.-]+)\s*[:=]\s*([^,{}]+)", value.strip("{}"))
        inner = ", ".join(f"{ours}: {theirs.strip()}" for ours, theirs in pairs) or "instruction: question"
        example = "for instance " if not pairs else ""
        raise UserError(f"{where}={value}: expected names and values; write {example}'{where}={{{inner}}}'")


_READ_AS = {bool: "yes or no", int: "a number", float: "a number"}


def check_values(config: Config) -> None:
    """The limits of single values, and the settings that must fit together.

    Raises:
        UserError: names the key, the value and what would be right.
    """
    bounds.check(config)
    one_of("task", config.task, ("train", "check", "plan", "export"))
    one_of("model.engine", config.model.engine, ("auto", "unsloth", "transformers"))
    if config.model.dtype is not None:
        one_of("model.dtype", config.model.dtype, ("float16", "bfloat16", "float32"))
    check_lora(config)
    one_of("lora.bias", config.lora.bias, ("none", "all", "lora_only"))
    one_of("lora.use_gradient_checkpointing", config.lora.use_gradient_checkpointing, ("unsloth", True, False))
    dataset = config.dataset
    for source in dataset.mixture:
        one_of("dataset.format", source.format, FORMATS)
        if source.weight is not None and source.count is not None:
            raise UserError(f"dataset.sources: {source.data_path} has a weight and a count; give one of them")
    one_of("dataset.thinking", dataset.thinking, ("keep", "drop", "last"))
    one_of("dataset.train_on", dataset.train_on, ("assistant", "last_assistant", "all"))
    one_of("dataset.overflow", dataset.overflow, ("truncate", "drop", "error", "split"))
    one_of("training.batch_layout", config.training.batch_layout, ("auto", "as_configured"))
    one_of("dataset.on_bad_row", dataset.on_bad_row, ("auto", "error", "drop", "warn"))
    config.training.loggers  # noqa: B018 (raises for a name that is no logger)
    check_save(config)
    for key, value, usual, source in (
        ("training.optim", config.training.optim, TrainingConfig.optim, ("training_args.py", "OptimizerNames")),
        ("training.lr_scheduler_type", config.training.lr_scheduler_type, TrainingConfig.lr_scheduler_type, ("trainer_utils.py", "SchedulerType")),
    ):
        if value != usual:  # reading transformers' sources takes a noticeable part of a start; the defaults are known to be right
            one_of(key, value, sft_arguments.enum_values(*source))
    optimization.check_arguments(config)
    for key, steps, smallest in (
        ("save_steps", config.training.save_steps, "above 0"),
        ("logging_steps", config.training.logging_steps, "above 0"),
        ("warmup_steps", config.training.warmup_steps, "0 or more"),
    ):
        if steps is not None and (steps < 0 or (steps == 0 and smallest == "above 0") or (steps > 1 and steps % 1 != 0)):
            raise UserError(f"training.{key}={steps:g}: expected a number of optimizer steps, {smallest}, or a share of the run below 1")
    _check_evaluation(config.training, dataset)
    if config.model.token is not None:
        raise UserError(
            "model.token: leave it null and set the environment variable HF_TOKEN; a token in a config would be written to the run directory"
        )
    for first, second in RIVALS.items():
        one, other = getattr(config.training, first), getattr(config.training, second)
        if one is not None and other is not None:
            raise UserError(f"training.{first}={one:g} and training.{second}={other:g}: two values for one thing; set one of them to null")
    if config.training.max_steps is None and config.training.num_train_epochs is None:
        raise UserError("training.max_steps and training.num_train_epochs are both null: set one, for instance training.num_train_epochs=1")
    if config.full_finetuning and config.model.load_in_4bit:
        raise UserError("model.load_in_4bit=true with lora.r=0: 4-bit weights cannot be trained in full; set model.load_in_4bit=false or use a LoRA")


def check_save(config: Config) -> None:
    """The part of `check_values` about exports."""
    save, methods = config.save, config.save.methods
    if not save.quantizations or (not methods and save.method != "none"):
        raise UserError("save.method and save.gguf_quantization: an empty list; name one, or set save.method=none")
    if config.full_finetuning and "lora" in methods:
        raise UserError("save.method=lora with lora.r=0: a full fine-tune has no adapter; use save=merged_16bit")
    if Path(save.save_path).suffix == ".gguf" and methods:
        if methods != ["gguf"]:
            raise UserError(f"save.save_path={save.save_path}: names a GGUF file, but save.method={save.method}; name a folder")
        if len(save.quantizations) > 1:
            raise UserError(f"save.save_path={save.save_path}: names one file for {len(save.quantizations)} quantizations; name a folder")
        if save.push_to_hub:
            raise UserError(f"save.save_path={save.save_path}: names a file, and save.push_to_hub uploads a folder; name a folder")
    if save.push_to_hub and not methods:
        raise UserError("save.push_to_hub=true with save.method=none: there is nothing to upload")
    if (config.task == "export") != (config.run is not None):
        raise UserError("task=export needs run=DIR, the directory of a run, and run= needs task=export")
    if config.task == "export" and not methods:
        raise UserError("task=export with save.method=none: nothing to do; for instance save=gguf")


def check_lora(config: Config) -> None:
    """The part of `check_values` about target modules, initialisation and new tokens."""
    targets, init = config.lora.target_modules, config.lora.init_lora_weights
    if targets != ALL_LINEAR and not (isinstance(targets, list) and targets and all(isinstance(name, str) for name in targets)):
        hint = f"; write lora.target_modules=[{targets}]" if isinstance(targets, str) else ""
        raise UserError(
            f"lora.target_modules={targets!r}: expected {ALL_LINEAR} or a list of module names{did_you_mean(str(targets), [ALL_LINEAR])}{hint}"
        )
    if init in LORA_INITS_FROM_DATA:
        raise UserError(f"lora.init_lora_weights={init}: needs a pass over the data that this version does not make; pissa and olora need none")
    if not re.fullmatch(r"pissa_niter_\d+", str(init)):
        one_of("lora.init_lora_weights", init, LORA_INITS)
    one_of("lora.loftq_bits", config.lora.loftq_bits, (4, 8))
    if config.lora_changes_base and config.model.load_in_4bit and not config.full_finetuning:
        why = "LoftQ quantises the 16-bit weights itself" if init == "loftq" else "it changes the base weights, which 4 bits cannot hold"
        raise UserError(f"lora.init_lora_weights={init} with model.load_in_4bit=true: {why}; set model.load_in_4bit=false")
    if init == "orthogonal" and config.lora.r % 2:
        raise UserError(f"lora.r={config.lora.r} with lora.init_lora_weights=orthogonal: must be even")
    tokens = config.model.new_tokens or []
    for token in tokens:
        if not token.strip() or tokens.count(token) > 1:
            raise UserError(f"model.new_tokens: {token!r} is {'there twice' if token.strip() else 'empty'}")


def _check_evaluation(training: TrainingConfig, dataset: DatasetConfig) -> None:
    """What evaluations during training need."""
    steps = training.eval_steps
    if steps is None:
        for key, value in (
            ("early_stopping_patience", training.early_stopping_patience),
            ("load_best_model_at_end", training.load_best_model_at_end),
        ):
            if value:
                raise UserError(f"training.{key}={str(value).lower()} needs evaluations during training: set training.eval_steps, for instance 0.1")
        return
    if steps <= 0 or (steps >= 1 and steps != int(steps)):
        raise UserError(f"training.eval_steps={steps:g}: must be a whole number of optimizer steps, or a share of the run between 0 and 1")
    if not dataset.eval_fraction and dataset.eval_data_path is None and dataset._target_.startswith(OUR_PACKAGE):
        raise UserError(f"training.eval_steps={steps:g}: nothing is held out; set dataset.eval_fraction or dataset.eval_data_path")


def one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises UserError where `value` is none of `allowed`; `1` is not taken for `true`."""
    if not any(value == option and type(value) is type(option) for option in allowed):
        names = [aliases.plain(option) for option in allowed]
        alias = aliases.value_of(key, value)
        hint = question([alias]) if alias else did_you_mean(str(value), names)
        raise UserError(f"{key}={aliases.plain(value)}: not one of {listed(names)}{hint}")


class ConfigLoader:
    """Configurations without Hydra, for notebooks and scripts: plain nested dictionaries."""

    PATH_KEYS = (("training", "output_dir"), ("save", "save_path"), ("paths", "output_dir"))

    @staticmethod
    def load_config(path: str | os.PathLike[str], project_root: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Read one flat YAML file, check it, fill in the defaults and make its relative paths absolute.

        Paths are relative to `project_root`: the nearest folder above the file that holds a `pyproject.toml` or `.git`, else the current folder.

        Raises:
            UserError: no such file, not YAML, or a setting that `Config.from_mapping` refuses.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"{file}: no such configuration file")
        try:
            text_files.read(file)
            loaded = OmegaConf.to_container(OmegaConf.load(file), resolve=True)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        except YAMLError as error:
            raise UserError(f"{file}: not YAML: {not_yaml(error)}") from None
        except Exception as error:  # PyYAML and OmegaConf raise unrelated types for text that is not YAML
            raise UserError(f"{file}: {' '.join(str(error).split())}") from None
        if not isinstance(loaded, dict):
            raise UserError(f"{file}: expected sections such as `model:` and `training:`, found a list")
        config = ConfigLoader._checked(loaded).to_dict()
        root = Path(project_root) if project_root is not None else _project_root(file)
        for section, key in ConfigLoader.PATH_KEYS:
            config[section][key] = str((root / config[section][key]).resolve())
        dataset = config["dataset"]
        for holder, key in [(dataset, "data_path"), (dataset, "eval_data_path"), *((source, "data_path") for source in dataset["sources"] or [])]:
            holder[key] = _resolved_data(root, holder[key])
        name = config["model"]["name"]
        if name.startswith(("./", "../")) or (root / name).is_dir():
            config["model"]["name"] = str((root / name).resolve())
        return config

    @staticmethod
    def validate_config(config: Mapping[str, Any]) -> bool:
        """True, or a UserError that says what is wrong."""
        ConfigLoader._checked(config)
        return True

    @staticmethod
    def _checked(config: Mapping[str, Any]) -> Config:
        checked = Config.from_mapping(config)
        effects.refuse(checked)
        return checked

    @staticmethod
    def merge(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """A new configuration: `config` with the nested values of `overrides` put over it, checked. A length in epochs ends one in steps."""
        ended = {"training": dict.fromkeys(ended_by(overrides.get("training") or {}))}
        merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(dict(part)) for part in (config, ended, overrides))))
        return ConfigLoader._checked(merged).to_dict()

    @staticmethod
    def save(config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Write `config` as a YAML file that `load_config` reads back."""
        Config.from_mapping(config)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(dict(config)), path)


def _resolved_data(root: Path, path: str | None) -> str | None:
    """`path` made absolute; a dataset id of the hub, a URL and nothing at all stay as they are."""
    from chatbot_sft.data.files import is_hub_id, is_url

    if path is None or not path.strip() or is_url(path) or (is_hub_id(path) and not (root / path).parent.is_dir()):
        return path
    return str((root / path).resolve())


def _project_root(file: Path) -> Path:
    for folder in file.resolve().parents:
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return Path.cwd()
