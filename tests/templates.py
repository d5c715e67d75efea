"""Chat templates of the kinds that are in use, and tokenizers and models of bytes that speak them."""

import json

from tests.tiny import save_llama

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ (system if loop.index0 == 0 else '') + m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% set last = namespace(at=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.at = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.index0 > last.at %}"
    "<think>\n{{ m.reasoning_content | default('') }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls | default([]) %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + THINKING.replace(
    "<think>\n{{ m.reasoning_content | default('') }}\n</think>\n\n", ""
)
TEMPLATES = {
    "chatml": CHATML,
    "marked": MARKED,
    "llama_2": LLAMA_2,
    "llama_3": LLAMA_3,
    "gemma": GEMMA,
    "thinking": THINKING,
}
SPECIAL = {
    "chatml": {"eos_token": "<|im_end|>", "added": ["<|im_start|>"]},
    "marked": {"eos_token": "<|im_end|>", "added": ["<|im_start|>"]},
    "llama_2": {"eos_token": "</s>", "bos_token": "<s>", "begins": True},
    "llama_3": {
        "eos_token": "<|eot_id|>",
        "bos_token": "<|begin_of_text|>",
        "added": ["<|start_header_id|>", "<|end_header_id|>"],
        "begins": True,
    },
    "gemma": {
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "added": ["<start_of_turn>", "<end_of_turn>"],
        "begins": True,
    },
    "thinking": {"eos_token": "<|im_end|>", "added": ["<|im_start|>"]},
}
"""Of each template: the tokens that it writes, and whether the tokenizer puts its beginning before any text by itself."""


def save_chat_tokenizer(folder, name, template=None):
    """A tokenizer of bytes with a template's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = dict(SPECIAL[name])
    added, begins = special.pop("added", []), special.pop("begins", False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", *special.values(), *added]
    bpe = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate([*tokens, *alphabet])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if begins:
        bos = special["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=256, pad_token="<pad>", additional_special_tokens=added, **special
    )
    tokenizer.chat_template = template or TEMPLATES[name]
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_instruct(folder, name, template=None, kind=save_llama):
    """A random two-layer model whose tokenizer has a chat template."""
    sizes = {"max_position_embeddings": 256} if kind is save_llama else {"n_positions": 256}
    kind(folder, vocab_size=272, **sizes)
    for path in folder.glob("*token*"):
        path.unlink()
    tokenizer = save_chat_tokenizer(folder, name, template)
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text())
        if path.name in ("config.json", "generation_config.json"):
            ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
            path.write_text(json.dumps(config | ids))
    return folder
