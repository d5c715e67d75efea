"""A tokenizer's chat template: messages become the text that an instruct model reads and writes.

A template is a program from elsewhere. It runs in transformers' sandbox, and whatever goes wrong in it, or is left out of
its text, is one sentence. The text that a model is asked with is exactly lm-eval's under `apply_chat_template`, and what is
learned begins where that ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.models.base_model import BaseModel, load_tokenizer
from harness.records.codec import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
"""A turn of a chat as templates read it: `role`, `content`, and perhaps `name`, `tool_calls`, `reasoning_content`."""
Tools = Sequence[Mapping[str, Any]]
"""JSON schemas of the functions that an assistant may call."""
Span = tuple[int, int]
"""Start and end of a part of a text, in characters."""
TODAY = date(2024, 7, 26)
"""What templates that write today's date are told, so that a trial's prompts are the same on every day; Llama's own default."""
_PROBE = "probe"
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True)
class RenderedChat:
    """A chat as text: what a model is asked with, what it should answer, and what its template writes after an answer."""

    prompt: str
    answer: str
    end: str
    """The end of the turn, without white space at its own end."""
    learned: tuple[Span, ...] = ()
    """Where earlier answers of the assistant stand in the prompt."""
    unlearned: int = 0
    """Earlier answers that stand there otherwise than they are given, such as without their reasoning."""
    left_out: str = ""
    """What the template writes before an answer that is given, but not before one that is asked for."""


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer; equal where the text that it writes is."""

    identity: str
    """Hash of the template and of the special tokens that it may write."""
    model: str = field(compare=False)
    """Whose it is, for messages."""
    tokenizer: PreTrainedTokenizerBase = field(compare=False, repr=False)
    _complete: set[str] = field(default_factory=set, compare=False, repr=False)
    """Shapes of chats of which nothing is left out."""

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Tools = ()) -> str:
        """The text of messages, as lm-eval has it with `apply_chat_template`.

        Args:
            messages: The turns; without `add_generation_prompt`, the last one is the beginning of an answer.
            add_generation_prompt: Whether the text ends where the assistant's next answer begins.
            tools: Functions that may be called.

        Raises:
            SpecError: When the template cannot render them, or leaves something of them out.
        """
        text = self._text(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._check(messages, tools)
        return text

    def answered(self, messages: Sequence[Message], tools: Tools = ()) -> RenderedChat:
        """A chat whose last message is the assistant's answer to learn.

        Args:
            messages: At least one message, and the answer.
            tools: Functions that may be called.

        Raises:
            SpecError: When the template cannot render them, or leaves something of them out.
        """
        *asked, last = messages
        prompt, whole = self.render(asked, tools=tools), self._text(messages, tools)
        self._check(messages, tools)
        end, content = self._end(asked, tools), str(last.get("content") or "").strip()
        rest = whole.removeprefix(prompt) if whole.startswith(prompt) else None
        body, left_out = whole.rstrip().removesuffix(end).rstrip(), ""
        if content and body.endswith(content) and _is_plain(last):
            lead = "" if rest is None else whole[len(prompt) : len(body) - len(content)]
            if lead.strip():
                # It is not there when the answer is asked for: a model that learned to write it would be scored on it.
                lead, left_out = "", lead.strip()
            answer = lead + content
        elif rest is not None and rest.rstrip().endswith(end):
            answer = rest.rstrip().removesuffix(end)
        else:
            raise SpecError(
                f"the chat template of {self.model} must render an answer after the text that asks for it, but does not for "
                f"{str(dict(last))[:80]}: correct the template, or the row"
            )
        learned, unlearned = self._earlier(asked, tools, prompt)
        return RenderedChat(
            prompt=prompt, answer=answer, end=end, learned=learned, unlearned=unlearned, left_out=left_out
        )

    def prompted(
        self, asked: Sequence[Message], tools: Tools = (), beginning: str = ""
    ) -> tuple[str, tuple[Span, ...]]:
        """The text that a model is asked with, and where earlier answers of the assistant stand in it.

        Args:
            asked: At least one message.
            tools: Functions that may be called.
            beginning: Of the answer, where it is given.

        Raises:
            SpecError: When the template cannot render them, or leaves something of them out.
        """
        given = [{"role": "assistant", "content": beginning}] if beginning else []
        prompt = self.render([*asked, *given], not given, tools)
        return prompt, self._earlier(asked, tools, prompt)[0]

    def end_after(self, asked: Sequence[Message], beginning: str = "", tools: Tools = ()) -> str:
        """What the template writes after an answer.

        Args:
            asked: The messages that it answers.
            beginning: Of the answer, where it is given.
            tools: Functions that may be called.
        """
        return self._end(asked, tools, beginning)

    def _end(self, asked: Sequence[Message], tools: Tools, beginning: str = "") -> str:
        text = self._text([*asked, {"role": "assistant", "content": beginning + _PROBE}], tools)
        return text[text.rindex(_PROBE) + len(_PROBE) :].rstrip() if _PROBE in text else ""

    def _earlier(self, asked: Sequence[Message], tools: Tools, prompt: str) -> tuple[tuple[Span, ...], int]:
        """Where the assistant's earlier answers stand in a prompt, and how many stand there otherwise than they are given."""
        places = [place for place, message in enumerate(asked) if message["role"] == "assistant"]
        spans = [self._span(asked, place, tools, prompt) for place in places]
        if None in spans and _MARK.search(self._source(tools)):
            marked = self._marked(asked, tools)
            if len(marked) == len(places) and all(prompt[start:end].strip() for start, end in marked):
                return marked, 0
        return tuple(span for span in spans if span), spans.count(None)

    def _span(self, asked: Sequence[Message], place: int, tools: Tools, prompt: str) -> Span | None:
        """Where one answer stands: from the text that asks for it to the end of its turn; None where it stands otherwise."""
        try:
            start = self._text(asked[:place], tools, add_generation_prompt=True)
            whole = self._text(asked[: place + 1], tools).rstrip()
            bare = start + str(asked[place]["content"]).strip() + self._end(asked[:place], tools)
        except SpecError:  # a template may refuse a part of what it accepts as a whole
            return None
        if whole.startswith(start) and prompt.startswith(whole):
            return len(start), len(whole)
        return (len(start), len(bare)) if _is_plain(asked[place]) and prompt.startswith(bare) else None

    def _marked(self, asked: Sequence[Message], tools: Tools) -> tuple[Span, ...]:
        """What the template marks as generated, without white space at its end."""
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            [[{key: value for key, value in message.items() if value is not None} for message in asked]],
            tools=list(tools) or None,
            chat_template=self._source(tools),
            return_assistant_tokens_mask=True,
            add_generation_prompt=True,
            **self.tokenizer.special_tokens_map,
        )
        return tuple((start, start + len(texts[0][start:end].rstrip())) for start, end in spans[0])

    def _check(self, messages: Sequence[Message], tools: Tools) -> None:
        """Refuse a template that leaves messages or tools out; once for chats of the same shape."""
        shape = json.dumps([[[*sorted(message), message["role"]] for message in messages], bool(tools)])
        if shape in self._complete:
            return
        probes = [f"{_PROBE}{number}x" for number in range(len(messages))]
        text = self._text([_probed(m, probe) for m, probe in zip(messages, probes, strict=True)], tools)
        for message, probe in zip(messages, probes, strict=True):
            if probe not in text:
                raise SpecError(
                    f"the chat template of {self.model} must write every message, but leaves out one of role "
                    f"{message['role']!r}: remove it from the task, or say chat_template: false for this model"
                )
        if tools and text == self._text([_probed(m, p) for m, p in zip(messages, probes, strict=True)], ()):
            raise SpecError(
                f"the chat template of {self.model} must write the tools that the rows name, but leaves them out: remove "
                "metadata.chat.tools from the task, or choose a model that knows tools"
            )
        self._complete.add(shape)

    def _source(self, tools: Tools) -> str:
        """The template itself; some tokenizers have another one where there are tools."""
        return str(self.tokenizer.get_chat_template(tools=list(tools) or None))

    def _text(
        self,
        messages: Sequence[Message],
        tools: Tools,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        try:
            self._stop_the_clock(tools)
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
        except Exception as error:  # the template is a program from elsewhere, which may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise SpecError(
                f"the chat template of {self.model} must render messages of the roles {roles}, but does not ({reason}): "
                "change the task's messages, or say chat_template: false for this model"
            ) from error
        if not isinstance(text, str) or not text.strip():
            raise SpecError(
                f"the chat template of {self.model} must render a text, but renders {text!r}: correct it, or say "
                "chat_template: false for this model"
            )
        return text

    def _stop_the_clock(self, tools: Tools) -> None:
        source = self._source(tools)
        if "strftime_now" in source:
            from transformers.utils.chat_template_utils import _compile_jinja_template

            # Compiled once per process, so lm-eval's own prompts have the same date.
            _compile_jinja_template(source).globals["strftime_now"] = TODAY.strftime


def _is_plain(message: Message) -> bool:
    """Whether a message is nothing but a text."""
    return not set(message) - {"role", "content", "name"}


def _probed(message: Message, probe: str) -> Message:
    """The message with a text that stands nowhere else, where it says something."""
    if message.get("tool_calls"):
        calls = [{**call, "function": {**call["function"], "name": probe}} for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    return {**message, "content": probe}


def chat_template(tokenizer: PreTrainedTokenizerBase, model: str) -> ChatTemplate | None:
    """A tokenizer's chat template; None where it has none.

    Args:
        tokenizer: A model's.
        model: Its name, for messages.

    Raises:
        SpecError: When what it has is no template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    sources = template.values() if isinstance(template, dict) else [template]
    if not all(isinstance(source, str) for source in sources):
        raise SpecError(
            f"the chat template of {model} must be a text, but is {type(template).__name__}: correct chat_template in its "
            "tokenizer_config.json, or say chat_template: false for this model"
        )
    return ChatTemplate(fingerprint([template, _written(tokenizer)]), model, tokenizer)


def in_template(base: BaseModel, wanted: bool | None = None) -> BaseModel:
    """A base model with the template that it is tuned and scored in.

    Args:
        base: A resolved model.
        wanted: Whether its chat template is used; None for one that it has.

    Raises:
        SpecError: When a template is wanted that there is not, or what there is is none.
    """
    template = None
    if wanted or (wanted is None and _may_have(base.folder)):
        template = chat_template(load_tokenizer(base), base.ref.name)
    if wanted and template is None:
        raise SpecError(
            f"base model {base.ref.name!r} must have a chat template to be tuned in it (chat_template: true), but its "
            "tokenizer has none: leave chat_template out, or save one as chat_template.jinja in its folder"
        )
    return replace(base, ref=replace(base.ref, chat_template=template.identity if template else ""))


def template_of(base: BaseModel) -> ChatTemplate | None:
    """The template that a base is tuned and scored in; None where that is plain text."""
    return chat_template(load_tokenizer(base), base.ref.name) if base.ref.chat_template else None


def _may_have(folder: Path) -> bool:
    """Whether a model's files speak of a chat template; loading a tokenizer to see takes a second."""
    config = folder / "tokenizer_config.json"
    return any(folder.glob("**/*.jinja")) or (
        config.is_file() and "chat_template" in config.read_text(errors="replace")
    )


def _written(tokenizer: PreTrainedTokenizerBase) -> Mapping[str, str]:
    """The special tokens that a template may write, without the padding that the harness may have chosen."""
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
