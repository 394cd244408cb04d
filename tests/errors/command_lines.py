"""Words of a command line as nobody would write them, and as a slip would: real keys and groups, values of every kind."""

from __future__ import annotations

from hypothesis import strategies as st

from chatbot_sft.config import OVERLAYS, SECTIONS, keys, sft_arguments
from chatbot_sft.resources import conf_dir

GROUPS = sorted(folder.name for folder in conf_dir().iterdir() if folder.is_dir() and folder.name != "hydra")
OPTIONS = sorted({file.stem for file in conf_dir().rglob("*.yaml")})
OURS = sorted({key.path for key in keys()} | {f"training.{key}" for key in sft_arguments.known()})
HYDRAS = [
    "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name", "hydra.job.chdir", "hydra.job.env_set.A", "hydra.verbose",
    "hydra.output_subdir", "hydra.callbacks", "hydra.searchpath", "hydra.nothing", "hydra.job", "hydra", "hydra.overrides.task",
    "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra.sweeper.params", "hydra.mode", "hydra.runtime.choices",
]  # fmt: skip

# No surrogates: the words of a command line that are no UTF-8 come in as such, and are a test of their own.
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
syntax = st.text(alphabet="abc=,:[]{}()$'\"\\ \t\n~+@/.-#%&*!?|<>é漢\x1b\x07\u202e0123456789eE_", max_size=14)


def _typo(draw, word: str) -> str:
    place = draw(st.integers(0, max(len(word) - 1, 0)))
    way = draw(st.integers(0, 3))
    return (
        word[:place] + word[place + 1 :],
        word[:place] + word[place : place + 1] * 2 + word[place + 1 :],
        word[:place] + "x" + word[place + 1 :],
        word[:place] + word[place + 1 : place + 2] + word[place : place + 1] + word[place + 2 :],
    )[way]


def often(*weighted):
    """One of the strategies, each as often as its number says."""
    return st.sampled_from([one for one, times in weighted for _ in range(times)]).flatmap(lambda one: one)


@st.composite
def names(draw) -> str:
    """A key, a section, a group, one of Hydra's, one with a slip in it, one nested under another, or anything."""
    name = draw(
        often(
            (st.sampled_from(OURS), 12),
            (st.sampled_from([*GROUPS, *SECTIONS, *OVERLAYS]), 4),
            (st.sampled_from(HYDRAS), 2),
            (syntax, 1),
            (anything, 1),
        )
    )
    way = draw(st.integers(0, 11))
    if way == 0:
        return _typo(draw, name)
    if way == 1:
        return f"{name}.{draw(st.sampled_from(['a', 'a.b.c.d.e', '0', 'r', '_target_', '', 'None']))}"
    if way == 2:
        return draw(
            st.sampled_from(["{}@x", "{}@_global_", "{}/x", "/{}", "{}[0]", " {}", "{} ", "-{}", "{}:"])
        ).format(name)
    return name


numbers = st.one_of(
    st.integers(-3, 9).map(str),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        [
            "1e400",
            "-1e400",
            "nan",
            "inf",
            "-inf",
            "NaN",
            ".inf",
            "1_000",
            "0x10",
            "0o7",
            "1e5",
            "010",
            "1e-400",
            "9" * 400,
            "5." + "0" * 50 + "1",
            "-0",
            "1E3",
        ]
    ),
)
texts = st.sampled_from(
    ["", "''", '""', "null", "NULL", "None", "~", "true", "True", "no", "off", "all", "auto", "???", "none", "a", "a b", "é", "漢字", "a=b", "a:b", "'a", '"a', "a'", "\\", "a\\", "\\,"]
)  # fmt: skip
interpolations = st.sampled_from(
    [
        "${seed}", "${lora.r}", "${nothing}", "${", "${}", "$", "${default:1}", "${default:}", "${default}", "${started:%Y}", "${started:}", "${oc.env:HOME}",
        "${oc.env:NO_SUCH}", "${hydra:job.num}", "${hydra:runtime.output_dir}", "${now:%Y}", "${no.such:1}", "${oc.decode:'1'}", "${oc.select:seed}",
        "${examples_dir:}", "${training}", "${.r}", "${..lora.r}", "${${seed}}", "a${seed}b", "${oc.create:{a: 1}}", "${eval:1}", "${lora}", "\\${seed}",
    ]
)  # fmt: skip
sweeps = st.sampled_from(
    [
        "1,2", "1,", ",1", ",", "a,b", "choice(1,2)", "choice()", "choice(", "range(1,3)", "range(1,3,0)", "range(3,1)", "range(1.5)", "range(1,4,0.5)",
        "range(0,1000000000)", "interval(1,2)", "interval(2,1)", "interval(0,inf)", "tag(log,interval(1,2))", "tag(log,interval(0,2))", "tag(a,1,2)", "glob(*)",
        "glob(l*)", "glob()", "glob(*,exclude=a)", "sort(3,1)", "shuffle(1,2)", "shuffle(a)", "int(1)", "float(a)", "str(1,2)", "bool(2)", "json_str(a)",
        "extend_list(1)", "foo(1)", "1,1", "true,false", "null,1", "[1],[2]", "{a: 1},{b: 2}", "'a,b',c", "cast(1)", "int('a')", "range('a')",
    ]
)  # fmt: skip
simple = often(
    (numbers, 4),
    (texts, 4),
    (interpolations, 3),
    (sweeps, 2),
    (st.sampled_from(OPTIONS), 3),
    (syntax, 1),
    (anything, 1),
)
nested = st.recursive(
    simple,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]")
        | st.lists(
            st.tuples(st.sampled_from(["a", "r", "data_path", "weight", "1", "", "_target_"]), inner),
            max_size=3,
        ).map(lambda pairs: "{" + ",".join(f"{key}: {value}" for key, value in pairs) + "}")
    ),
    max_leaves=4,
)
deep = st.integers(1, 300).flatmap(
    lambda depth: st.sampled_from(
        ["[" * depth + "1" + "]" * depth, "{a: " * depth + "1" + "}" * depth, "${" * depth, "[" * depth]
    )
)
values = often((simple, 8), (nested, 2), (deep, 1))
words = often(
    (
        st.builds(
            lambda sign, name, value: f"{sign}{name}={value}",
            st.sampled_from(["", "", "", "", "", "", "+", "++", "~", "--"]),
            names(),
            values,
        ),
        16,
    ),
    (st.builds(lambda sign, name: f"{sign}{name}", st.sampled_from(["", "~", "+", "--", "-"]), names()), 2),
    (syntax, 1),
    (anything, 1),
)
flags = st.sampled_from(
    [
        "--help",
        "-m",
        "--cfg",
        "--cfg=job",
        "--info",
        "--resolve",
        "--package",
        "--config-name",
        "--config-dir",
        "--hydra-help",
        "-h",
        "--version",
    ]
)
