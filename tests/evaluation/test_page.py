"""The page of an evaluation, opened by a real browser from the disk."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from chatbot_sft.evaluation import page as page_module
from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.evaluation.cases import read
from chatbot_sft.evaluation.grade import Column, graded
from chatbot_sft.evaluation.page import page, write_page
from chatbot_sft.evaluation.report import Evaluation
from chatbot_sft.evaluation.table import table

HOSTILE = """<script>document.title='owned'</script>"><img src=x onerror="document.title='owned'"></p></article><!-- $title &lt; \0 \u202e x"""
CASES = [
    {"messages": "When do you open?", "contains": "nine", "tags": ["hours"]},
    {
        "messages": "Which beer for a barbecue?",
        "contains": ["Lager", ["grill", "barbecue"]],
        "tags": ["beer", "food"],
    },
    {"messages": "Bia nào nhẹ?", "contains": "0.0", "tags": ["beer"], "id": "light"},
    {"messages": HOSTILE, "not_contains": HOSTILE, "tags": [HOSTILE]},
    {"messages": "Is it kind?", "judge": "is kind", "tags": ["tone"]},
]
BEFORE = ["At ten.", "Stout.", "Hạc Trắng 0.0 ạ.", HOSTILE, "Yes."]
AFTER = ["At nine.", "Lager, it suits grilled food.", "Không biết", HOSTILE, "Yes."]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    file = tmp_path_factory.mktemp("golden") / "golden.jsonl"
    rows = [{**case, "messages": [{"role": "user", "content": case["messages"]}]} for case in CASES]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    cases = read(file)
    columns = [
        Column(title, f"{title} <b>model</b>", [graded(case, Answer(text, 4, text != HOSTILE)) for case, text in zip(cases, texts, strict=True)])
        for title, texts in (("before", BEFORE), ("after", AFTER))
    ]  # fmt: skip
    return Evaluation(file, cases, columns, 256, 16)


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "evaluation.html"
    write_page(path, evaluation)
    return path


def test_the_table_on_the_terminal(evaluation):
    said = table(evaluation).splitlines()
    assert said[0].split() == ["tag", "cases", "before", "after", "turned", "right", "turned", "wrong"]
    assert said[1].split() == ["beer", "2", "1", "(50%)", "1", "(50%)", "1", "1"]
    assert said[-3].split() == ["all", "5", "1", "(20%)", "2", "(40%)", "2", "1"]
    assert (
        said[-2] == "before → after: 2 turned right, 1 wrong of 4; p = 1 (exact McNemar), no difference shown"
    )
    assert said[-1] == "1 case not judged, counted as not passed (judge: evaluation.judge_url is not set)"


def test_cases_without_a_tag_have_a_line_where_others_have_one(evaluation):
    bare = [replace(case, tags=()) if "beer" in case.tags else case for case in evaluation.cases]
    lines = [line.split() for line in table(replace(evaluation, cases=bare)).splitlines()]
    assert ["(no", "tag)", "2"] in [line[:3] for line in lines]


def test_page_refers_to_no_other_file(evaluation):
    text = page(evaluation)
    assert not re.findall(
        r"https?:|//[a-z]|\b(?:src|href)=(?!x on)|url\(|@import", text.replace("&quot;", "")
    )
    assert "default-src 'none'" in text


def test_no_page_is_written_in_python():
    folder = Path(page_module.__file__).parent
    assert not [
        file
        for file in folder.glob("*.py")
        if re.search("<style|<script|<body", file.read_text(encoding="utf-8"))
    ]
    assert {file.suffix for file in folder.glob("page.*")} == {".py", ".html", ".css", ".js"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("", [1, 2, 3, 4, 5]),
        ("#q=BARBECUE", [2]),
        ("#q=kh%C3%B4ng%20bi%E1%BA%BFt", [3]),
        ("#only=right", [1, 2]),
        ("#only=wrong", [3]),
        ("#only=failed", [3, 4]),
        ("#only=unjudged", [5]),
        ("#tag=beer", [2, 3]),
        ("#tag=beer&only=wrong", [3]),
        ("#q=nothing%20of%20that", []),
    ],
)
def test_address_filters_the_cases(fragment, shown, written, browse):
    text = browse(written, fragment)
    articles = re.findall(r"<article[^>]*>", text)
    assert [number for number, tag in enumerate(articles, 1) if "hidden" not in tag] == shown
    assert f"{len(shown)} of 5 cases" in text


@pytest.mark.slow
def test_nothing_of_an_answer_runs(written, browse):
    text = browse(written)
    assert "<title>golden.jsonl: 40% of 5 cases passed</title>" in text
    assert text.count("<script") == 1
    assert "<img" not in text
    assert "lacks “0.0”" in text
    assert "&lt;script&gt;document.title='owned'" in text


@pytest.mark.slow
def test_reader_on_a_phone(written, browse, tmp_path):
    """Nothing sticks out, and a click on a tag filters by it."""
    (tmp_path / "evaluation.html").write_bytes(written.read_bytes())
    (tmp_path / "phone.html").write_text(
        """<iframe width=360 height=700 src=evaluation.html></iframe><pre></pre><script>
        document.querySelector('iframe').onload = event => {
          const page = event.target.contentDocument, view = event.target.contentWindow
          page.querySelector('a[data-tag=beer]').click()
          document.querySelector('pre').textContent = [page.documentElement.scrollWidth <= 360, page.querySelector('output').textContent, view.location.hash].join('|')
        }
        </script>"""
    )
    text = browse(tmp_path / "phone.html", "", "--dump-dom", "--allow-file-access-from-files")
    assert re.search("<pre>(.*)</pre>", text)[1] == "true|2 of 5 cases, beer|#tag=beer"
