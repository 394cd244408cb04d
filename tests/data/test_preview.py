"""The page of training conversations, opened by a real browser from the disk."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatbot_sft.data import preview as preview_module
from chatbot_sft.data.preview import PreviewRow, PreviewToken, page, write_preview

HOSTILE = """<script>document.title='owned'</script>"><img src=x onerror="document.title='owned'"></p></article><!-- $title &lt; \0 \u202e x"""


def conversation(question, answer, file="chats.jsonl", number=1, length=None, held_out=False, problems=()):
    """A ChatML row; a token for each word with the space before it, as byte-level BPE has them, the answer
    and its end trained.
    """
    parts = [
        ("<|im_start|>", False),
        ("user\n", False),
        *((word, False) for word in re.findall(r"\s*\S+", question)),
        ("<|im_end|>", False),
    ]
    parts += [
        ("\n", False),
        ("<|im_start|>", False),
        ("assistant\n", False),
        *((word, True) for word in re.findall(r"\s*\S+", answer)),
    ]
    parts += [("<|im_end|>", True), ("\n", True)]
    tokens = []
    for text, trained in parts:
        tokens.append(PreviewToken(text, 1000 + len(tokens), trained, text.startswith("<|im_")))
        if not text.isascii():  # a character of several tokens
            tokens.append(PreviewToken("", 1000 + len(tokens), trained, False))
    return PreviewRow(
        file, number, tuple(tokens), length or len(tokens), bool(length), held_out, tuple(problems)
    )


ROWS = [
    conversation("Which beer for a barbecue?", "Lager.\n\nIt suits grilled food 😀 <b>&amp;"),
    conversation("Bia nào nhẹ?", "Hạc Trắng 0.0 ạ.", number=2, held_out=True),
    conversation(
        "مرحبا، كم السعر؟",
        "320,000 دونغ",
        file="arabic.jsonl",
        number=3,
        length=900,
        problems=["repeated role: messages 2 and 3"],
    ),
    conversation(HOSTILE, HOSTILE, file=HOSTILE, number=4, problems=[HOSTILE, "one more"]),
]


@pytest.fixture(scope="module")
def preview(tmp_path_factory):
    path = tmp_path_factory.mktemp("preview") / "data_preview.html"
    write_preview(path, "Preview <of> chats", [("end of turn", "<|im_end|>"), ("hostile", HOSTILE)], ROWS)
    return path


class Document(HTMLParser):
    """What the tests ask of a dumped document. `rows` has for each article whether it is shown, and its text
    by element.
    """

    VOID = ("meta", "input", "br", "img", "link", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.rows, self.texts = [], [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag == "article":
            self.rows.append({"shown": "hidden" not in dict(attributes), "special": [], "breaks": 0})
        if tag == "i" and "article" in self.open and dict(attributes).get("class") == "s":
            self.rows[-1]["special"].append("mark" in self.open)
        if tag == "u" and "p" in self.open:
            self.rows[-1]["breaks"] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        texts = self.rows[-1] if "article" in self.open else self.texts
        for tag in set(self.open):
            texts[tag] = texts.get(tag, "") + data

    @property
    def shown(self):
        return [number for number, row in enumerate(self.rows, 1) if row["shown"]]


@pytest.fixture(scope="module")
def document(preview, browse):
    """The page as it opens."""
    return Document(browse(preview))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ("#q=BEER", [1]),
        ("#q=h%E1%BA%A1c%20tr%E1%BA%AFng", [2]),
        ("#q=arabic.jsonl:%20row%203", [3]),
        ("#q=tokens", []),  # what the page itself says of a row is not searched
        ("#only=problems", [3, 4]),
        ("#q=REPEATED%20role&only=problems,cut", [3]),
    ],
)
def test_address_filters_the_rows(fragment, shown, preview, browse):
    found = Document(browse(preview, fragment))
    assert found.shown == shown
    assert found.texts["output"] == f"{len(shown)} of 4 rows"


def test_marked_text_is_exactly_what_is_trained(document):
    assert document.texts["output"] == "4 of 4 rows"
    for row, found in zip(ROWS, document.rows, strict=True):
        trained = "".join(token.text for token in row.tokens if token.trained)
        everything = "".join(token.text for token in row.tokens)
        assert found["mark"] == trained.replace("\0", "[U+0000]").replace("\u202e", "[U+202E]")
        assert found["p"] == everything.replace("\0", "[U+0000]").replace("\u202e", "[U+202E]")
        assert found["breaks"] == trained.count("\n")
        assert (
            found["special"]
            == [token.trained for token in row.tokens if token.special]
            == [False, False, False, True]
        )
    assert document.rows[2]["footer"].startswith("cut here, 88")
    assert "held out" in document.rows[1]["header"]
    assert "held out" not in document.rows[0]["header"]


def test_every_token_tells_its_id(document):
    ids = [attributes["title"] for tag, attributes in document.seen if tag == "i" and "title" in attributes]
    assert " ".join(ids).split() == [str(token.id) for row in ROWS for token in row.tokens]


def test_nothing_of_the_data_runs_or_becomes_an_element(document):
    assert document.texts["title"] == document.texts["h1"] == "Preview <of> chats"
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "dl",
        "div",
        "dt",
        "dd",
        "nav",
        "input",
        "output",
        "fieldset",
        "legend",
        "label",
    }
    allowed |= {
        "b",
        "span",
        "mark",
        "i",
        "main",
        "article",
        "header",
        "h2",
        "ul",
        "li",
        "s",
        "u",
        "p",
        "footer",
        "code",
        "script",
    }
    assert {tag for tag, _ in document.seen} <= allowed
    assert [tag for tag, _ in document.seen].count("script") == 1
    assert len(document.rows) == len(ROWS)
    assert not {name for _, attributes in document.seen for name in attributes if name.startswith("on")}
    assert "$title" in document.rows[3]["p"]


def test_no_page_is_written_in_python():
    package = Path(preview_module.__file__).parent.parent
    assert not [
        file.name
        for file in package.rglob("*.py")
        if re.search("<style|<script|<body", file.read_text(encoding="utf-8"))
    ]
    assert {file.suffix for file in package.glob("data/preview.*")} == {".py", ".html", ".css", ".js"}


def test_page_refers_to_no_other_file():
    text = page("", [], ROWS[:3])
    assert not re.findall(r"https?:|//[a-z]|\b(?:src|href)=|url\(|@import", text)
    assert "default-src 'none'" in text


@pytest.mark.slow
def test_page_is_light_or_dark_as_the_reader_likes(preview, browse, tmp_path):
    from matplotlib.image import imread

    brightness = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        browse(
            preview,
            "",
            f"--screenshot={tmp_path / name}.png",
            "--window-size=800,800",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        brightness[name] = imread(tmp_path / f"{name}.png")[..., :3].mean()
    assert brightness["dark"] < 0.25
    assert brightness["light"] > 0.8


@pytest.mark.slow
def test_reader_on_a_phone_types_ticks_and_points(tmp_path, browse):
    """In a frame as wide as a phone: nothing sticks out, and what a reader does has its effect."""
    rows = [*ROWS, conversation("w" * 400, "x" * 400, file="y" * 200, number=5, problems=["z" * 200])]
    write_preview(tmp_path / "preview.html", "t" * 200, [("name", "v" * 200)], rows)
    (tmp_path / "phone.html").write_text(
        """<iframe width=360 height=700 src=preview.html></iframe><pre></pre><script>
        const said = [], say = what => said.push(what)
        document.querySelector('iframe').onload = event => {
          const page = event.target.contentDocument, view = event.target.contentWindow, shown = () => page.querySelector('output').textContent
          say(page.documentElement.scrollWidth <= 360)
          const box = page.querySelector('[type=search]')
          box.value = 'chats'
          box.dispatchEvent(new view.Event('input'))
          say(shown())
          say(view.location.hash)
          page.querySelector('[value=held]').click()
          say(shown())
          say(view.location.hash)
          page.querySelector('article mark i.s').dispatchEvent(new view.PointerEvent('pointerover', {bubbles: true}))
          say(page.getElementById('tip').textContent)
          page.querySelector('h1').dispatchEvent(new view.PointerEvent('pointerover', {bubbles: true}))
          say(page.getElementById('tip').hidden)
          document.querySelector('pre').textContent = said.join('\\n')
        }
        </script>"""
    )
    said = (
        Document(browse(tmp_path / "phone.html", "", "--dump-dom", "--allow-file-access-from-files"))
        .texts["pre"]
        .splitlines()
    )
    number = [token.trained and token.special for token in ROWS[0].tokens].index(True) + 1
    count = len(ROWS[0].tokens)
    tip = f'"<|im_end|>" · id {999 + number} · token {number} of {count} · trained · special'
    assert said == ["true", "2 of 5 rows", "#q=chats", "1 of 5 rows", "#q=chats&only=held", tip, "true"]


def test_a_usual_page_is_small_and_no_rows_are_no_error():
    words = " ".join(["reasonable"] * 300)
    assert len(page("t", [], [conversation("Why?", words)] * 40).encode()) < 600_000
    assert "0 of 0 rows" in page("t", [], [])
    assert "There are no rows." in page("t", [], [])


def test_half_of_a_surrogate_pair_can_be_written(tmp_path):
    write_preview(tmp_path / "p.html", "t", [], [conversation("\ud83d", "yes")])
    assert "[U+D83D]" in (tmp_path / "p.html").read_text(encoding="utf-8")
