"""Chat templates of six kinds: what is asked, what is learned, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.axes.encoding import encoded
from harness.errors import SpecError
from harness.models.base_model import resolve_model
from harness.models.chat import ChatTemplate, chat_template, in_template, template_of
from harness.models.tokens import encoder
from harness.nn.sequences import IGNORED
from harness.tasks.training_rows import Row
from tests.templates import MARKED, TEMPLATES, THINKING, TOOLS, save_chat_tokenizer, save_instruct

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "end"},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "im_end s"},
]
ENDS = {"llama_2": " </s>", "llama_3": "<|eot_id|>", "gemma": "<end_of_turn>"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: save_chat_tokenizer(tmp_path_factory.mktemp(name), name) for name in TEMPLATES}


def template(tokenizer: Any) -> ChatTemplate:
    found = chat_template(tokenizer, "it")
    assert found is not None
    return found


def written(tmp_path: Path, text: object, name: str = "chatml") -> ChatTemplate:
    """A tokenizer's template, whatever it is."""
    tokenizer = save_chat_tokenizer(tmp_path, name)
    tokenizer.chat_template = text
    return template(tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_and_its_answer_are_the_text_that_transformers_renders(tokenizers: dict[str, Any], name: str) -> None:
    tokenizer = tokenizers[name]
    asked = tokenizer.apply_chat_template(CHAT[:-1], tokenize=False, add_generation_prompt=True)
    chat = template(tokenizer).answered(CHAT)
    assert chat.prompt == asked
    assert (chat.answer.strip(), chat.end) == ("im_end s", ENDS.get(name, "<|im_end|>"))
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    # The kind that thinks writes an empty thought before an answer that it is given, and none when it asks for one.
    assert (chat.prompt + chat.answer + chat.end == whole.rstrip()) is (name != "thinking")
    assert chat.left_out == ("<think>\n\n</think>" if name == "thinking" else "")
    assert chat.unlearned == 0
    assert [chat.prompt[start:stop].strip() for start, stop in chat.learned] == ["end" + chat.end]


def tokens_with_loss(tokenizer: Any, chat: Any, generates: bool) -> str:
    size = len(chat.prompt)
    row = Row(
        prompt=chat.prompt,
        completion=chat.answer,
        end=chat.end,
        learned=tuple((start - size, stop - size) for start, stop in chat.learned),
    )
    (sequence,) = encoded([row], encoder(tokenizer), generates)
    return str(tokenizer.decode([label for label in sequence.labels if label != IGNORED]))


@pytest.mark.parametrize("generates", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_and_its_end_carry_loss_and_nothing_else(
    tokenizers: dict[str, Any], name: str, generates: bool
) -> None:
    tokenizer = tokenizers[name]
    learned = tokens_with_loss(tokenizer, template(tokenizer).answered(CHAT), generates)
    expected = {"llama_2": " end </s> im_end s </s>", "gemma": "end<end_of_turn>im_end s<end_of_turn><eos>"}
    end = ENDS.get(name, "<|im_end|>")
    assert learned == expected.get(name, f"end{end}im_end s{end}")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="<|>"), min_size=1).filter(
    lambda text: text == text.strip() and "\r" not in text and text.isprintable()
)


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_marks_and_prefixes_name_the_same_answers(turns: list[tuple[str, str]]) -> None:
    chat = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    marked, plain = (MARKED_AND_PLAIN[name].answered(chat) for name in ("marked", "chatml"))
    texts = [text for _, text in turns]
    for found in (marked, plain):
        own = [found.prompt[start:stop] for start, stop in found.learned]
        assert [*own, found.answer + found.end] == [f"{text}<|im_end|>" for text in texts]


def _made() -> dict[str, ChatTemplate]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return {name: template(save_chat_tokenizer(folder, name)) for name in ("marked", "chatml")}


MARKED_AND_PLAIN = _made()


def test_an_earlier_answer_that_loses_its_reasoning_is_not_learned_unless_the_template_marks_it(tmp_path: Path) -> None:
    chat = [CHAT[0], CHAT[1] | {"reasoning_content": "Let me see."}, *CHAT[2:]]
    found = written(tmp_path, THINKING).answered(chat)
    assert "Let me see." not in found.prompt
    assert (found.learned, found.unlearned) == ((), 1)
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% if loop.last %}{{ m.reasoning_content | default('') }}{% endif %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = written(tmp_path, marked).answered(chat)
    assert ([found.prompt[start:stop] for start, stop in found.learned], found.unlearned) == (["end<|im_end|>"], 0)


def test_an_answer_with_reasoning_or_calls_is_learned_as_the_template_writes_it(tmp_path: Path) -> None:
    reasoned = written(tmp_path, THINKING).answered([CHAT[0], CHAT[1] | {"reasoning_content": "Hm."}])
    assert (reasoned.answer, reasoned.end) == ("<think>\nHm.\n</think>\n\nend", "<|im_end|>")
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    calls = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    called = written(tmp_path, TOOLS).answered(calls, tools)
    assert called.answer == '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert '"parameters"' in called.prompt


def test_what_a_template_cannot_write_is_one_sentence(tmp_path: Path, tokenizers: dict[str, Any]) -> None:
    def refused(text: object, *messages: Any, tools: Any = ()) -> str:
        with pytest.raises(SpecError) as caught:
            written(tmp_path, text).render(messages or CHAT[:1], tools=tools)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "System role not supported" in refused(TEMPLATES["gemma"], SYSTEM, CHAT[0])
    assert "roles must alternate" in refused(TEMPLATES["llama_2"], CHAT[0], CHAT[0])
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    assert "leaves out one of role 'system'" in refused(silent, SYSTEM, CHAT[0])
    assert "leaves them out" in refused(TEMPLATES["chatml"], tools=[{"name": "add"}])
    assert "must render a text" in refused("{% if 0 %}{{ messages[0].content }}{% endif %}")
    assert "but does not" in refused("{{ messages[0].content.missing.more }}")
    assert "but does not" in refused("{% for m in messages %}")
    assert "must be a text, but is int" in refused(5)
    assert "must be a text, but is dict" in refused({"default": 5})


def test_a_template_that_writes_the_date_writes_the_same_every_day(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}{% endfor %}"
    assert written(tmp_path, dated).render(CHAT[:1]) == "26 Jul 2024 Hi there"


def test_an_instruct_model_has_its_template_and_a_base_model_none(tmp_path: Path, world: Any) -> None:
    folder = save_instruct(tmp_path, "chatml")
    base = resolve_model(str(folder))
    own = in_template(base).ref.chat_template
    assert own
    assert in_template(base, True).ref.chat_template == own
    assert in_template(base, False).ref.chat_template == base.ref.chat_template == ""
    found = template_of(in_template(base))
    assert found is not None
    assert found.identity == own
    plain = resolve_model(str(world.llama))
    assert in_template(plain) == plain
    assert template_of(plain) is None
    with pytest.raises(SpecError, match="must have a chat template to be tuned in it"):
        in_template(plain, True)


def test_another_template_is_another_identity(tmp_path: Path) -> None:
    assert written(tmp_path, MARKED) != written(tmp_path, THINKING)
    assert written(tmp_path, MARKED) == written(tmp_path, MARKED)
