"""The typed schema: every key once, with its type, its default, and what there is to say of it (see `key`).

The defaults here are those of the original `configs/sft.yaml`. `conf/` states them again where a user looks
for them and adds the embedded model; tests/config/test_schema.py holds the two together. `--help`, the checks
and a run's identity are made from `keys()`.
"""

# ruff: noqa: RUF009
# `key` makes a dataclass field.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Union

from omegaconf import MISSING, DictConfig

from chatbot_sft.config import sft_arguments
from chatbot_sft.config.key import ABOUT, Bound, Key, described, key, one_of
from chatbot_sft.config.precedence import BRINGING, brought_by
from chatbot_sft.errors import UserError

OUR_PACKAGE = "chatbot_sft."
FORMATS = (
    "auto", "json", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference",
    "unpaired_preference", "thumbs",
)  # fmt: skip
ROLES = ("system", "user", "assistant", "tool")  # of a message
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ALL_LINEAR = "all-linear"
METHODS = ("lora", "merged_16bit", "merged_4bit", "gguf")
# What the gguf package and llama.cpp's quantiser make without a matrix of importances.
QUANTIZATIONS = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1",
    "q4_0", "iq4_xs", "iq4_nl",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
# As what a server may have a model: those of save/verify/compare.py that have a bound.
FORMATS_SERVED = (*(method for method in METHODS if method != "gguf"), *QUANTIZATIONS)
# Ours, each with an extra of its name; and those that transformers opens by itself.
LOGGERS = ("tensorboard", "wandb", "mlflow", "trackio")
OTHER_LOGGERS = (
    "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "neptune", "swanlab",
)  # fmt: skip
SAMPLERS = ("random", "tpe", "cmaes", "nsgaii")
PRUNERS = ("hyperband", "halving", "median", "patient")
DIRECTIONS = ("minimise", "maximise")
# What becomes of rows in which the gate finds what is no fault of the row alone.
FOUND = ("off", "note", "error", "drop")
OBJECTIVES = ("sft", "dpo", "orpo", "kto")

STEPS = 10**9
SHARE = Bound(0, 1, below=True)
SEED = Bound(0, 2**32 - 1)  # NumPy's largest
# Entries of a run's lock (run/lock.py) that stand for keys whose own value does not say it.
WEIGHTS = "model (config and weights)"
ADAPTER = "model.adapter (weights)"
REFERENCE = "objective.reference (weights)"
ROWS = "dataset (training rows)"
BATCH = "effective batch size"
MACHINE = "as it turned out on the machine"
TARGET = "a class or function of yours in its place, as module.Name in a file beside you or in --config-dir"


@dataclass
class PathsConfig:
    output_dir: str = key(
        "outputs",
        "the run directory; everything a run writes is in it",
        decides=False,
        elsewhere="outputs/<date>/<time>",
    )
    data_dir: str = key("data", "the example conversations", decides=False, elsewhere="(in the package)")


@dataclass
class BringsConfig:
    """What an option of `conf/model` sets in place of defaults; see `precedence`."""

    only_for: str | None = None  # the model.name that it is meant for; null: whatever the name
    load_in_4bit: bool | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    target_modules: Any = None


@dataclass
class DataBringsConfig:
    """What an option of `conf/dataset` sets in place of defaults; see `precedence`."""

    only_for: str | None = None  # the dataset.data_path that it is meant for; null: whatever the data
    max_steps: int | None = None


@dataclass
class ObjectiveBringsConfig:
    """What an option of `conf/objective` sets in place of defaults; see `precedence`."""

    only_for: str | None = None  # the objective.name that it is meant for; null: whatever the name
    learning_rate: float | None = None


BRINGS: dict[str, type] = {
    "model": BringsConfig,
    "dataset": DataBringsConfig,
    "objective": ObjectiveBringsConfig,
}


@dataclass
class Section:
    """A section whose `_target_` may be the user's own class: `extra` are the keys that only the class has."""

    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)


@dataclass
class ModelConfig(Section):
    _target_: str = key("chatbot_sft.model.ModelLoader", TARGET)
    name: str = key(
        "unsloth/Llama-3.2-3B-Instruct",
        "hub id, local folder, or smollm2, the embedded model",
        through=WEIGHTS,
        elsewhere="smollm2",
    )
    revision: str | None = key(None, "branch, tag or commit of a hub id")
    engine: str = key(
        "auto",
        "what trains fastest here, Unsloth, or plain transformers and PEFT",
        choices=("auto", "unsloth", "transformers"),
        through=MACHINE,
    )
    max_seq_length: int = key(
        2048, "tokens; longer conversations are cut (dataset.overflow)", bound=Bound(8, 2**24)
    )
    dtype: str | None = key(
        None, "null: what the hardware does best", choices=("float16", "bfloat16", "float32"), through=MACHINE
    )
    load_in_4bit: bool = key(True, "QLoRA: the frozen base in 4 bits (bitsandbytes nf4)")
    load_in_fp8: bool = key(
        False, "the frozen base's products in float8: Hopper GPUs and newer, with load_in_4bit=false"
    )
    trust_remote_code: bool = key(False, "run Python code that comes with a hub model", decides=False)
    allow_pickle: bool = key(
        False,
        "load weights that are not safetensors (*.bin), with PyTorch's loader for weights alone",
        decides=False,
    )
    adapter: str | None = key(
        None,
        "go on from an earlier adapter: a run directory, an export or an adapter's folder;"
        " its rank and targets are kept",
        through=ADAPTER,
    )
    chat_template: str | None = key(
        None,
        "a Jinja file in place of the tokenizer's own chat template; a base model has none",
        through=ROWS,
    )
    new_tokens: list[str] | None = key(
        None, 'special tokens added to the tokenizer, their embeddings trained: ["<|think|>", "<|/think|>"]'
    )
    token: str | None = key(None, "stays null: set HF_TOKEN in the environment", decides=False)
    # A BringsConfig.
    brings: dict[str, Any] = key(
        {},
        "what this model needs in place of defaults written ${default:…}: load_in_4bit, max_steps,"
        " learning_rate, target_modules",
        decides=False,
    )

    @property
    def use_safetensors(self) -> bool | None:
        """What transformers' `from_pretrained` takes: True refuses every other file, None prefers them."""
        return None if self.allow_pickle else True


@dataclass
class LoraConfig(Section):
    _target_: str = key("chatbot_sft.model.add_adapter", TARGET)
    r: int = key(16, "rank; 0 trains every weight instead (full fine-tuning)", bound=Bound(0, 65_536))
    lora_alpha: int = key(16, "the adapter's output is scaled by lora_alpha / r", bound=Bound(1, 10**6))
    lora_dropout: float = key(0.0, "share of the adapter's inputs dropped while it trains", bound=SHARE)
    target_modules: Any = key(PROJECTIONS, "names, or all-linear: every linear layer of the language model")
    bias: str = key("none", "biases that are trained", choices=("none", "all", "lora_only"))
    use_rslora: bool = key(False, "scale by lora_alpha / sqrt(r), so that a large rank keeps learning")
    use_dora: bool = key(False, "train magnitude and direction apart; slower per step")
    modules_to_save: list[str] | None = key(
        None, "trained in full beside the adapter: [embed_tokens, lm_head]"
    )
    # Of PEFT's those that need nothing but the weights. OmegaConf 2.3 reads no `bool | str`.
    init_lora_weights: Union[bool, str] = key(  # noqa: UP007
        True, "true | gaussian | orthogonal | olora | pissa | pissa_niter_16 | loftq | mica"
    )
    loftq_bits: int = key(4, "what init_lora_weights=loftq quantises to", choices=(4, 8))
    loftq_iter: int = key(1, "rounds of init_lora_weights=loftq", bound=Bound(1, 1_000))
    use_gradient_checkpointing: Union[bool, str] = key(  # noqa: UP007
        "unsloth",
        "unsloth: offloaded on a GPU, off on a CPU",
        choices=("unsloth", True, False),
        decides=False,  # it computes the same numbers again
    )


@dataclass
class SourceConfig:
    """One part of a mixture. What is not said here is as in `dataset`."""

    data_path: str = MISSING
    format: str | None = None
    columns: dict[str, str] | None = None
    roles: dict[str, str] | None = None
    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    weight: float | None = None  # share of the mixture
    count: int | None = None  # rows of it; more than there are repeats them


SOURCE_BOUNDS = {"weight": Bound(0, STEPS, above=True), "count": Bound(0, STEPS, above=True)}


@dataclass
class DatasetConfig(Section):
    _target_: str = key("chatbot_sft.data.DatasetLoader", TARGET, through=ROWS)
    data_path: str = key(
        "data/thinking_teacher_conversations.json",
        "file, folder, glob, or org/name on the hub; .json .jsonl .csv .parquet .arrow, compressed or not",
        through=ROWS,
        elsewhere="(the examples)",
    )
    format: str = key(
        "json", "auto and json: told from the content", choices=FORMATS, through=ROWS, elsewhere="auto"
    )
    split: str = key(
        "train", "of a hub id, or of a folder whose files are called by their splits", through=ROWS
    )
    config_name: str | None = key(None, "of a hub id", through=ROWS)
    revision: str | None = key(None, "of a hub id", through=ROWS)
    text_field: str = key("text", "column of ready-made text", through=ROWS)
    message_field: str = key("messages", "column of [{role, content, thinking?}, …]", through=ROWS)
    columns: dict[str, str] = key(
        {}, "other columns by the format's names: {instruction: question, output: answer}", through=ROWS
    )
    roles: dict[str, str] = key(
        {},
        "what the file calls the roles system, user, assistant and tool: {customer: user, agent: assistant}",
        through=ROWS,
    )
    # SourceConfigs.
    sources: list[Any] | None = key(
        None,
        "a mixture in place of data_path: [{data_path: a.json, weight: 0.7},"
        " {data_path: b.csv, weight: 0.3}], or count: rows of each",
        through=ROWS,
    )
    eval_data_path: str | None = key(
        None, "held-out conversations of their own, in place of eval_fraction", through=ROWS
    )
    eval_fraction: float = key(
        0.1, "share of the conversations held out for evaluation; 0 holds out none", bound=SHARE, through=ROWS
    )
    eval_on_training: bool = key(
        False,
        "evaluate on the training conversations themselves: can the model learn at all (debug=overfit)",
        decides=False,
    )
    max_rows: int | None = key(
        None, "at most so many rows, drawn with the seed", bound=Bound(1, STEPS), through=ROWS
    )
    split_seed: int | None = key(
        None,
        "which rows are chosen and which held out, whatever the seed; null: the seed",
        bound=SEED,
        through=ROWS,
    )
    shuffle: bool = key(True, "false: the file's order, and its first max_rows")
    system_prompt: str | None = key(None, "for conversations without one", through=ROWS)
    thinking: str = key(
        "keep",
        "what becomes of an answer's thinking; keep: <think>…</think> before it; last:"
        " kept in the last answer alone",
        choices=("keep", "drop", "last"),
        through=ROWS,
    )
    train_on: str = key(
        "assistant", "whose tokens are trained", choices=("assistant", "last_assistant", "all"), through=ROWS
    )
    overflow: str = key(
        "truncate",
        "conversations over model.max_seq_length; split: at turns, each piece with the system prompt",
        choices=("truncate", "drop", "error", "split"),
        through=ROWS,
    )
    personal_data: str = key(
        "note",
        "e-mail addresses, phone numbers, cards, IBANs, national numbers, secrets; note: counted, and masked in"
        " what a run shows; redact: trained as [EMAIL], [PHONE], …",
        choices=("off", "note", "error", "drop", "redact"),
        through=ROWS,
    )
    personal_data_allowed: list[str] = key(
        [], "what is no personal data: your own hotline, or @example.com for all its addresses", through=ROWS
    )
    phone_regions: list[str] | None = key(
        None,
        "countries whose national form of phone numbers is found beside the international one: [VN, US];"
        " null: told from the writing",
        through=ROWS,
    )
    national_numbers: list[str] | None = key(
        None,
        "countries whose national numbers are found: [PL, NL]; null: those that cannot be mistaken for other"
        " numbers, or behind a word that says so",
        through=ROWS,
    )
    on_bad_row: str = key(
        "auto",
        "auto: error where over 1% of the rows are bad, drop below that",
        choices=("auto", "error", "drop", "warn"),
        through=ROWS,
    )
    max_row_mb: float = key(
        10.0,
        "millions of characters that one row of a file may have: a longer one is a file gone wrong",
        bound=Bound(0, 10**6, above=True),
        through=ROWS,
    )
    on_near_duplicate: str = key(
        "note",
        "training rows that say nearly the same as an earlier one; drop leaves them out; many rows need the"
        " extra data",
        choices=FOUND,
        through=ROWS,
    )
    on_contamination: str = key(
        "note",
        "held-out rows and evaluation.golden questions that are nearly in the training rows;"
        " drop leaves the training rows out",
        choices=FOUND,
        through=ROWS,
    )
    near_duplicate_threshold: float = key(
        0.8,
        "share of runs of five characters that two rows have in common to be nearly the same (Jaccard)",
        bound=Bound(0.5, 1),
        through=ROWS,
    )
    on_contradiction: str = key(
        "note",
        "answers to the same question that say another number, name, day, or yes and no; judged answers to the same"
        " prompt that are judged the other way round elsewhere; drop leaves all of them out",
        choices=FOUND,
        through=ROWS,
    )
    on_language_mismatch: str = key(
        "note",
        "answers in another language than their question; needs the extra data",
        choices=FOUND,
        through=ROWS,
    )
    on_refusal: str = key(
        "note", "answers that decline, or say that they do not know", choices=FOUND, through=ROWS
    )
    chat_template_kwargs: dict[str, Any] = key(
        {}, "given to the chat template: {enable_thinking: false}", through=ROWS
    )
    # A DataBringsConfig.
    brings: dict[str, Any] = key(
        {}, "what this data needs in place of the default training.max_steps: {max_steps: 200}", decides=False
    )

    @property
    def mixture(self) -> list[SourceConfig]:
        """The training sources: `sources` with the gaps filled in from here, or `data_path` alone."""
        given = self.sources or [{"data_path": self.data_path}]
        return [self.source(SourceConfig(**source)) for source in given]

    def source(self, item: SourceConfig) -> SourceConfig:
        """`item` with what it leaves open taken from here."""
        own = {
            name: getattr(item, name) if getattr(item, name) is not None else getattr(self, name)
            for name in _INHERITED
        }
        return replace(item, **own)


_INHERITED = ("format", "columns", "roles", "config_name", "split", "revision")


@dataclass
class TrainingConfig(Section):
    _target_: str = key("chatbot_sft.train.SFTTrainerWrapper", TARGET)
    output_dir: str = key("checkpoints", "where checkpoints go", decides=False, elsewhere="<run>/checkpoints")
    loop: str = key(
        "auto",
        "native: the loop of this program | trl: TRL's SFTTrainer | auto: native,"
        " and trl where a key needs it",
        choices=("auto", "native", "trl"),
        decides=False,
    )
    per_device_train_batch_size: int = key(
        2, "conversations at a time; 2 × 4 = 8 in an optimizer step", bound=Bound(1, 10**6), through=BATCH
    )
    gradient_accumulation_steps: int = key(
        4, "times that many in an optimizer step", bound=Bound(1, 10**6), through=BATCH
    )
    batch_layout: str = key(
        "auto",
        "auto: the micro-batches, padding and checkpointing that are fastest on this machine;"
        " the gradient stays the same",
        choices=("auto", "as_configured"),
        decides=False,
    )
    memory_margin: float = key(
        0.1, "share of the GPU's memory that batch_layout=auto has to leave free", bound=SHARE, decides=False
    )
    packing: bool = key(
        False,
        "whole conversations fill sequences of model.max_seq_length (best fit);"
        " a batch then counts sequences",
    )
    shard: bool = key(
        False,
        "a part of the frozen base in each process, for models that do not fit one card in 16 bits;"
        " several processes",
        decides=False,
    )
    max_steps: int | None = key(30, "optimizer steps; this or num_train_epochs", bound=Bound(1, STEPS))
    num_train_epochs: float | None = key(None, "in place of max_steps", bound=Bound(0, 10**6, above=True))
    learning_rate: float = key(2.0e-4, "the highest of the schedule", bound=Bound(0, 10**6, above=True))
    lr_scheduler_type: str = key("linear", "linear, cosine, constant, … (transformers' SchedulerType)")
    warmup_steps: float | None = key(5, "optimizer steps; 0.1: a tenth of the run", bound=Bound(0, STEPS))
    warmup_ratio: float | None = key(
        None, "the same share under its older name, in place of warmup_steps", bound=SHARE
    )
    weight_decay: float = key(0.01, "of AdamW", bound=Bound(0, 1_000))
    optim: str = key(
        "adamw_8bit",
        "transformers' OptimizerNames; another AdamW where there is no GPU for this one",
        through=MACHINE,
    )
    logging_steps: float = key(
        1, "optimizer steps; below 1: a share of the run", bound=Bound(0, STEPS, above=True), decides=False
    )
    report_to: Any = key(
        "none",
        "none | tensorboard | wandb | mlflow | trackio, or a list; each is an extra of that name",
        decides=False,
    )
    resume: str = key(
        "auto",
        "auto: from the run directory's last checkpoint; never: start afresh;"
        " or a checkpoint or run directory to go on from",
        decides=False,
    )
    # A number of steps or a share: checks.py has its lower bound, and that of eval_steps.
    save_steps: float = key(
        0.1,
        "optimizer steps between checkpoints; below 1: a share of the run",
        bound=Bound(None, STEPS),
        decides=False,
    )
    save_total_limit: int | None = key(
        2, "checkpoints kept, the newest and the best always; null: all", bound=Bound(1, STEPS), decides=False
    )
    stop_on_divergence: bool = key(
        True, "stop where the loss is not finite or leaves the rails", decides=False
    )
    response_only: bool = key(
        True, "loss on the assistant's tokens alone; false: the same as dataset.train_on=all"
    )
    sample_prompts: list[str] | None = key(
        None,
        "questions answered at each evaluation; null: three from the held-out conversations",
        decides=False,
    )
    sample_max_new_tokens: int = key(
        96, "tokens per sample answer; 0: no samples", bound=Bound(0, 2**24), decides=False
    )
    eval_steps: float | None = key(
        None,
        "optimizer steps between evaluations, 0.1: ten in a run; null: before and after training only",
        bound=Bound(None, STEPS),
        decides=False,
    )
    golden_steps: int | None = key(
        None,
        "optimizer steps between evaluations of evaluation.golden, before and after training too; null: none",
        bound=Bound(1, STEPS),
        decides=False,
    )
    per_device_eval_batch_size: int | None = key(
        None,
        "null: as in training, on a GPU as many as are 8,192 tokens",
        bound=Bound(1, 10**6),
        decides=False,
    )
    early_stopping_patience: int | None = key(
        None,
        "evaluations without a better held-out loss before training stops; null: it does not",
        bound=Bound(1, STEPS),
        decides=False,
    )
    # 100 nats: more than any vocabulary has.
    early_stopping_threshold: float = key(
        0.0, "nats that count as better", bound=Bound(0, 100), decides=False
    )
    load_best_model_at_end: bool = key(
        False, "end with the weights of the lowest held-out loss, not with the last", decides=False
    )
    profile: bool = key(
        False,
        "a torch.profiler trace and a table of three steps, in profile/ of the run directory (debug=profile)",
        decides=False,
    )

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
            raise UserError(
                "training.report_to=all: name the loggers,"
                " for instance training.report_to=[tensorboard,mlflow]"
            )
        allowed = (*LOGGERS, *OTHER_LOGGERS)
        for name in names:
            one_of("training.report_to", name, allowed if len(names) > 1 else ("none", *allowed))
        return list(dict.fromkeys(names))


@dataclass
class ObjectiveConfig(Section):
    """What a step makes smaller. The names are those of TRL's configurations."""

    name: str = key(
        "sft",
        "sft: the answers themselves; dpo, orpo: pairs of answers; kto: answers that were liked or not;"
        " of a class of your own, the one whose rows it takes",
        choices=OBJECTIVES,
    )
    _target_: str = key("chatbot_sft.objective.SFT", TARGET)
    beta: float = key(
        0.1,
        "dpo, kto: how dear it is to part from the reference (ipo: τ); orpo: the weight of the odds ratio",
        bound=Bound(0, 1_000, above=True),
    )
    loss_type: Any = key(
        None,
        "dpo: sigmoid hinge ipo sigmoid_norm robust exo_pair nca_pair bco_pair sppo_hard apo_zero apo_down sft, or a"
        " list of them; kto: kto apo_zero_unpaired; null: the first of these",
    )
    loss_weights: list[float] | None = key(
        None, "of each loss where loss_type is a list; [sigmoid,sft] with [1,0.5] is rpo_alpha=0.5"
    )
    label_smoothing: float = key(
        0.0,
        "dpo: share of pairs that are the wrong way round (robust, exo_pair)",
        bound=Bound(0, 0.5, below=True),
    )
    desirable_weight: float = key(1.0, "kto: of the answers that were liked", bound=Bound(0, 10**6))
    undesirable_weight: float = key(1.0, "kto: of those that were not", bound=Bound(0, 10**6))
    reference: str | None = key(
        None,
        "dpo, kto: an earlier adapter to measure from, a run directory or an adapter's folder;"
        " null: the model as training begins",
        through=REFERENCE,
    )
    # An ObjectiveBringsConfig.
    brings: dict[str, Any] = key(
        {}, "what this method needs in place of the default training.learning_rate", decides=False
    )

    @property
    def is_sft(self) -> bool:
        """Whether it is supervised fine-tuning as everybody has it, and no class of the user's own."""
        return self._target_ == objective_target("sft")


@dataclass
class SaveConfig(Section):
    _target_: str = key("chatbot_sft.save.ModelSaver", TARGET, decides=False)
    method: Any = key(
        "merged_16bit",
        "lora | merged_16bit | merged_4bit | gguf | none, or a list of them:"
        " then each has a folder in save_path",
        decides=False,
    )
    save_path: str = key(
        "checkpoints/final_model", "where the export goes", decides=False, elsewhere="<run>/model"
    )
    gguf_quantization: Any = key(
        "q4_k_m", "f32 f16 bf16 q8_0 q6_k q5_k_m q4_k_m …, or a list of them", decides=False
    )
    verify: bool = key(
        True, "reload each export from disk and hold it against the trained model", decides=False
    )
    overwrite: bool = key(False, "replace what is at save_path", decides=False)
    llama_cpp_dir: str | None = key(
        None,
        "a llama.cpp of your own, whose llama-quantize is used; null: PATH, then the one in the gguf extra",
        decides=False,
    )
    push_to_hub: bool = key(False, "upload, with the token in HF_TOKEN", decides=False)
    hub_model_id: str | None = key(None, "org/name", decides=False)
    hub_private: bool = key(True, "a private repository", decides=False)
    hub_revision: str | None = key(None, "branch", decides=False)

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
        given = self.gguf_quantization
        names = given if isinstance(given, list) else [given]
        for name in names:
            one_of("save.gguf_quantization", name.lower() if isinstance(name, str) else name, QUANTIZATIONS)
        return list(dict.fromkeys(name.lower() for name in names))


PASSED = "evaluation.passed"  # a metric: the share of golden cases, where training.golden_steps asks them
MORE_IS_BETTER = (PASSED, "training.eval_token_accuracy", "training.tokens_per_second")


def of_answers(metric: str) -> bool:
    """Whether it is a number of what golden answers came to: then it counts which these were."""
    return metric.startswith("evaluation.")


def direction_of(metric: str) -> str:
    """Which way a number of report.json is better, where nobody says."""
    return "maximise" if metric in MORE_IS_BETTER else "minimise"


@dataclass
class SweepConfig:
    """Of `-m`: how its jobs are chosen and judged. Nothing here decides what any one of them trains."""

    metric: Any = key(
        "training.eval_loss",
        "what jobs are judged by: a number of report.json, or a list of two for sweep.sampler=nsgaii",
        decides=False,
    )
    direction: Any = key(
        None,
        "minimise | maximise, or a list: one for each metric; null: as the metric is meant",
        decides=False,
    )
    zip: list[str] = key(
        [],
        "keys whose lists go hand in hand, not every value with every other: [lora.r,lora.lora_alpha]",
        decides=False,
    )
    points: str | None = key(
        None, "a YAML or JSON file with a list of jobs: [{lora.r: 8, seed: 1}, …]", decides=False
    )
    sampler: str | None = key(
        None,
        "who chooses the points, from choices, ranges and intervals; null: every combination runs;"
        " needs the extra sweep",
        choices=SAMPLERS,
        decides=False,
    )
    trials: int | None = key(
        None, "how many jobs sweep.sampler chooses", bound=Bound(1, 10**6), decides=False
    )
    pruner: str | None = key(
        None,
        "all jobs take turns, and it ends the worst early by their held-out losses (training.eval_steps);"
        " needs the extra sweep",
        choices=PRUNERS,
        decides=False,
    )
    turn: int | None = key(
        None,
        "optimizer steps of a turn with sweep.pruner; null: to the next evaluation",
        bound=Bound(1, STEPS),
        decides=False,
    )
    timeout: float | None = key(
        None,
        "seconds after which no job begins, and one that runs stops with a checkpoint",
        bound=Bound(0, STEPS, above=True),
        decides=False,
    )
    max_failures: int | None = key(
        None, "no job begins after more failed ones than that", bound=Bound(0, STEPS), decides=False
    )
    fail_fast: bool = key(False, "no job begins after the first that failed", decides=False)
    retry_failed: bool = key(True, "a sweep started again runs failed jobs again", decides=False)
    revive: int | None = key(
        None, "the number of a pruned job to go on with", bound=Bound(0, STEPS), decides=False
    )
    dry_run: bool = key(False, "list the jobs and how long they may take; train nothing", decides=False)
    workers: Any = key(1, "processes that take jobs; auto: one for each GPU", decides=False)
    worker: bool = key(False, "this process takes jobs of the sweep in hydra.sweep.dir", decides=False)
    wait: bool = key(
        True,
        "false: with hydra/launcher=slurm the command ends when its workers are submitted",
        decides=False,
    )
    processes_per_job: int = key(
        1, "processes that train one job together, a GPU each", bound=Bound(1, 10**6), decides=False
    )

    @property
    def metrics(self) -> list[str]:
        """`metric` as a list."""
        return self.metric if isinstance(self.metric, list) else [self.metric]

    @property
    def directions(self) -> list[str]:
        """`direction` as a list, one for each metric where one word, or none, is given for all."""
        if isinstance(self.direction, list):
            return self.direction
        return [self.direction or direction_of(metric) for metric in self.metrics]

    @property
    def judged_by_answers(self) -> bool:
        """Whether a pruner has golden answers to judge by, and not the held-out loss."""
        return self.metrics == [PASSED]


@dataclass
class EvaluationConfig:
    golden: str | None = key(
        None, 'the cases: JSONL of {"messages": […], "contains": "Tuesday"}', decides=False
    )
    against: str | None = key(None, "an earlier run, export or .gguf file, asked the same", decides=False)
    minimum: float | None = key(
        None, "0.9: the command fails where fewer of the cases pass", bound=Bound(0, 1), decides=False
    )
    max_new_tokens: int = key(256, "of an answer", bound=Bound(1, 2**24), decides=False)
    batch_size: int = key(
        32, "answers at a time; of a server, requests at a time", bound=Bound(1, 1_024), decides=False
    )
    system_prompt: str | None = key(
        None, "for cases without one; null: the one that the model was trained with", decides=False
    )
    url: str | None = key(
        None,
        "an OpenAI-compatible server, of task=evaluate in place of run=: http://localhost:8000/v1; url= for short",
        decides=False,
    )
    model: str | None = key(
        None,
        "its name on the server; null: the only one that the server has; with task=verify or task=evaluate model="
        " for short",
        decides=False,
    )
    format: str | None = key(
        None,
        "of task=verify: as what the model is served, q8_0 or merged_16bit, say; null: told from its name, else from"
        " what the run exported",
        choices=FORMATS_SERVED,
        decides=False,
    )
    api_key_variable: str | None = key(
        None, "the environment variable that holds the server's key; null: none is sent", decides=False
    )
    timeout: float = key(
        120, "seconds for one answer of a server", bound=Bound(0, 86_400, above=True), decides=False
    )
    retries: int = key(
        3,
        "of a request that got no answer, or that the server was too busy for",
        bound=Bound(0, 100),
        decides=False,
    )
    judge_url: str | None = key(
        None,
        "an OpenAI-compatible server whose model judges the cases with a rubric; null: nothing is judged",
        decides=False,
    )
    judge_model: str | None = key(
        None, "its name there; null: the only one that the server has", decides=False
    )
    judge_api_key_variable: str | None = key(
        None, "the environment variable that holds the judge's key; null: none is sent", decides=False
    )


# In what a machine may differ from the one of a run that is replayed, so that its result may.
DIFFERENCES = ("versions", "device", "data", "weights", "tokenizer", "code", "settings")


@dataclass
class ReplayConfig:
    allow: list[str] = key(
        [],
        f"of task=replay: what may be different here all the same: {', '.join(DIFFERENCES)}",
        decides=False,
    )
    git: bool = key(
        False,
        "of any training: run git, and keep in run.lock.json whether the current folder's tree was dirty, with the"
        " diff; the commit is there without",
        decides=False,
    )


@dataclass
class Config(Mapping[str, Any]):
    """Every setting of a run. `from_mapping` is the only way in: it checks keys, types and their fit.

    It can be read like the mapping that it was made from, defaults filled in: `config["dataset"]["my_key"]`.
    """

    task: str = key(
        "train",
        "check: look at the data, and stop; plan: measure memory and batch layout, and stop; export:"
        " save an earlier run; evaluate: put questions of your own to a model; verify: does a running server say what"
        " was trained; replay: train an earlier run again from its lock, and compare",
        choices=("train", "check", "plan", "export", "evaluate", "verify", "replay"),
        decides=False,
    )
    run: str | None = key(
        None,
        "of task=export: the directory of the run that is exported; of task=evaluate: that, an export, an"
        " adapter or a .gguf file; of task=verify: the run that a server is held against; of task=replay: the run"
        " that is trained again",
        decides=False,
    )
    allow_targets: list[str] = key(
        [],
        "packages beside this program and your own folders whose code a _target_ may run: [my_package]",
        decides=False,
    )
    seed: int = key(3407, "of the split, the order, the adapter's beginning and dropout", bound=SEED)
    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    # Keys of `training` that TRL's SFTConfig takes as they are.
    sft_arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any] | DictConfig | Config) -> Config:
        """Check a composed or hand-written configuration and fill in the defaults; a Config stays as it is.

        Other keys of a section whose `_target_` is the user's own class are that class's business
        (`section.extra`), but for those that certainly meant one of ours.

        Raises:
            UserError: an unknown key (with the nearest known one), a value of the wrong type or out of range,
                settings that contradict.
        """
        from chatbot_sft.config.reading import read

        return config if isinstance(config, Config) else read(config)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a nested dictionary, as in the YAML files, with the keys of a user's own class."""
        return {name: self[name] for name in self}

    def __getitem__(self, name: str) -> Any:
        if name not in iter(self):
            raise KeyError(name)
        value = getattr(self, name)
        if name not in SECTIONS:
            return deepcopy(value)
        plain = asdict(value)
        if name == "training":
            plain.update(deepcopy(self.sft_arguments))
        plain.update(plain.pop("extra", {}))
        return plain

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if f.name != "sft_arguments")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def rows_seed(self) -> int:
        """Which rows are chosen and held out."""
        given = self.dataset.split_seed
        return self.seed if given is None else given

    @property
    def full_finetuning(self) -> bool:
        return self.lora.r == 0

    @property
    def lora_changes_base(self) -> bool:
        """Whether the adapter begins as a part of the base weights, which is taken out of them."""
        init = self.lora.init_lora_weights
        return isinstance(init, str) and (init in ("olora", "loftq") or init.startswith("pissa"))

    @property
    def brought(self) -> dict[str, list[str]]:
        """What the options of model, data and objective brought and nobody changed: section → "key=value"s."""
        used = {
            name: getattr(section, name)
            for section in (self.model, self.lora, self.training)
            for name in names(type(section))
        }
        found = {}
        for section in BRINGING:
            counts = {
                key: value
                for key, value in brought_by(section, self._bringing).items()
                if used.get(key) == value
            }
            found[section] = [
                f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in counts.items()
            ]
        return found

    @property
    def usual_steps(self) -> bool:
        """Whether training.max_steps is what it is where nobody chose it for these data, as far as values can tell:
        the default, or what the model brings.
        """
        model, data = (brought_by(name, self._bringing).get("max_steps") for name in ("model", "dataset"))
        return data is None and self.training.max_steps == (model or TrainingConfig().max_steps)

    @property
    def _bringing(self) -> dict[str, dict[str, Any]]:
        model, dataset, objective = self.model, self.dataset, self.objective
        return {
            "model": {"name": model.name, "brings": model.brings},
            "dataset": {"data_path": dataset.data_path, "sources": dataset.sources, "brings": dataset.brings},
            "objective": {"name": objective.name, "brings": objective.brings},
            "lora": {"r": self.lora.r},
        }

    @property
    def effective_batch_size(self) -> int:
        """Conversations per optimizer step on one device."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps


# ~/ in them is expanded.
PATH_KEYS = (("training", "output_dir"), ("save", "save_path"), ("paths", "output_dir"))
TOP = [f.name for f in fields(Config) if ABOUT in f.metadata]  # the keys beside the sections
OF_SWEEP = "sweep."  # the beginning of keys that say how a sweep is run
OVERLAYS = ("experiment", "hparams_search", "debug")  # groups of conf/ whose options reach into every section
# Name → dataclass.
SECTIONS: dict[str, type] = {
    name: type(value) for name, value in vars(Config()).items() if is_dataclass(value)
}


def objective_target(name: str) -> str:
    """The class of one of `OBJECTIVES`."""
    return f"{OUR_PACKAGE}objective.{name.upper()}"


def names(section: type) -> list[str]:
    """The keys of a section's dataclass."""
    return [f.name for f in fields(section) if f.name != "extra"]


def keys() -> Iterator[Key]:
    """Every key of the schema: those at the top, then section by section."""
    for section, dataclass_ in (("", Config), *SECTIONS.items()):
        yield from (described(section, f) for f in fields(dataclass_) if ABOUT in f.metadata)


def find(path: str) -> Key | None:
    """The key `section.name`; None where the schema has none that is called so."""
    return next((entry for entry in keys() if entry.path == path), None)


def plain_values(settings: Config, wanted: Iterable[Key]) -> dict[str, Any]:
    """Path → value of the `wanted` keys."""
    plain = settings.to_dict()
    return {key.path: plain[key.section][key.name] if key.section else plain[key.name] for key in wanted}


def deciding(settings: Config) -> dict[str, Any]:
    """Path → value of what decides a run's result by its own value. For the rest see `About.through`.

    A key of a user's own class counts, but for a loader's, which shows in the training rows, and a saver's.
    """
    values = plain_values(settings, (key for key in keys() if key.about.decides and not key.about.through))
    others = {
        "model": settings.model.extra,
        "lora": settings.lora.extra,
        "objective": settings.objective.extra,
        "training": settings.training.extra | settings.sft_arguments,
    }
    values |= {
        f"{section}.{name}": value for section, given in others.items() for name, value in given.items()
    }
    return {
        path: values[path]
        for path in sorted(values)
        if path.removeprefix("training.") not in sft_arguments.ASIDE
    }


def kind_of(path: str) -> str:
    """The type of `section.key` as the schema writes it ("str | None"), empty where it is not in the schema."""
    entry = find(path)
    return entry.kind if entry else ""
