"""Text to ids and back: byte-level BPE by the `tokenizers` library, kept as a Hub tokenizer, chat templates included.

Sennrich et al. 2016 (byte pairs), Radford et al. 2019 (over bytes, so that nothing is unknown)."""
import itertools
import json
import re
from pathlib import Path

from gencore.check import CheckpointError, DataError, InputError
from gencore.checkpoint import belongs, read_json, read_text

END = "<|endoftext|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
TURN_END = "<|end|>"
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception('a role is "system", "user" or "assistant", got "' + message.role + '"') }}
    {%- endif %}
    {{- "<|" + message.role + "|>" + message.content + "<|end|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>" }}
{%- endif %}
"""
TEMPLATE_BYTES = 400_000
BERT_ROLES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "cls_token", "sep_token")


class Tokenizer:
    """A tokenizer.json with the roles of its special tokens: what AutoTokenizer reads from the same folder."""

    def __init__(self, engine, config):
        self.engine = engine                                   # tokenizers.Tokenizer
        self.config = config                                   # contents of tokenizer_config.json
        roles = {role: _content(config.get(role)) for role in SPECIAL_ROLES}
        ids = {role: None if token is None else engine.token_to_id(token) for role, token in roles.items()}
        self.bos_id, self.eos_id, self.pad_id, self.unk_id, self.mask_id = (ids[role] for role in SPECIAL_ROLES[:5])
        self.mask = roles["mask_token"]
        self.special_ids = sorted({i for i in ids.values() if i is not None})

    def __len__(self):
        return self.engine.get_vocab_size()

    def encode(self, text, special=False):
        """Text -> list of ids; special: with the tokens that the file's post-processor adds ([CLS], <s>).

        Special tokens that are written out in the text are read as these tokens, as transformers reads them; only in `chat_ids` are they inert."""
        if not isinstance(text, str):
            raise InputError(f"expected text as str, got {type(text).__name__}")
        check_characters("the text", text)
        return self.engine.encode(text, add_special_tokens=special).ids

    def decode(self, ids, keep_special=False):
        """ids (T,) -> text; bytes that make no character become U+FFFD. An id that no token has says nothing."""
        ids = [int(i) for i in ids]
        if ids and not 0 <= min(ids) <= max(ids) < 2 ** 32:
            raise InputError(f"ids should be between 0 and {len(self) - 1}, got {min(ids)} to {max(ids)}")
        return self.engine.decode(ids, skip_special_tokens=not keep_special)

    def id(self, token):
        """The id of one token, or InputError."""
        check_characters("the token", token)
        found = self.engine.token_to_id(token)
        if found is None:
            raise InputError(f'the tokenizer has no token "{token}"')
        return found

    # ---- conversations ----

    @property
    def chat_template(self):
        """The folder's template as text, or None."""
        template = self.config.get("chat_template")
        if isinstance(template, list):                         # several by name, as some folders have them
            template = next((each.get("template") for each in template if each.get("name") == "default"), None)
        return template or None

    def chat(self, messages, *, prompt=True):
        """[{"role", "content"}] -> text by the folder's chat template; prompt: with the opening of the assistant's turn."""
        from gencore.chat_template import compiled, render
        if self.chat_template is None:
            raise InputError("this tokenizer has no chat template: give plain text instead of messages")
        roles = {role: _content(self.config.get(role)) or "" for role in SPECIAL_ROLES}
        values = {"messages": checked_messages(messages), "add_generation_prompt": prompt, "tools": None, "documents": None, **roles}
        said = render(compiled(self.chat_template), values)
        check_characters("what the chat template writes", said)
        return said

    def chat_ids(self, messages, *, prompt=True):
        """As `chat`, encoded. Special tokens that stand in a message's own words are plain text: no message can end its turn early."""
        ids = self.engine.encode(self.chat(messages, prompt=prompt), add_special_tokens=False).ids
        control = self.control_tokens()
        words = "".join(message["content"] for message in messages)
        starts = self._starts(control, set(words))
        if not starts:
            return ids
        stop = next((chr(code) for code in range(0xF0000, 0x100000) if chr(code) not in words), None)
        if stop is None or any(len(token) == 1 and token in words for token in control):
            raise InputError("a message holds characters that this tokenizer can't tell from its special tokens: leave them out")
        table = {ord(start): start + stop for start in starts}
        known = set(control.values())
        told = lambda ids: [i for i in ids if i in known]
        safe = self._cut_ids(messages, table, stop, prompt=prompt)
        if told(ids) == told(safe):
            return ids                                         # as transformers has it, unless the words would make special tokens
        few = self._cut_ids(messages, table, stop, prompt=prompt, among=known)
        return few if told(few) == told(safe) else safe

    def _cut_ids(self, messages, table, stop, *, prompt, among=None):
        """Ids of a conversation that is cut wherever a special token could begin in a message; among: in those alone that spell such a token."""
        apart = [message | {"content": message["content"].translate(table)}
                 if among is None or not among.isdisjoint(self.encode(message["content"])) else message for message in messages]
        pieces = self.chat(apart, prompt=prompt).split(stop)   # no special token reaches over a border
        return [i for piece in pieces for i in self.engine.encode(piece, add_special_tokens=False).ids]

    def control_tokens(self):
        """{token: id} of all special tokens, those without a role too."""
        added = {token.content: i for i, token in self.engine.get_added_tokens_decoder().items() if token.special}
        return added | {token: i for token, i in ((self.engine.id_to_token(i), i) for i in self.special_ids)}

    def _starts(self, control, characters):
        """Those of the characters with which a special token can begin, also after the normaliser has had them."""
        first, normalizer = {token[0] for token in control}, self.engine.normalizer
        looks = {c: c if normalizer is None else c + normalizer.normalize_str(c) for c in characters}
        return {c for c, look in looks.items() if not first.isdisjoint(look)}

    def files(self):
        """Files of a Hub tokenizer, for gencore.checkpoint.save_folder."""
        several = isinstance(self.config.get("chat_template"), list)                   # by name: they stay where they came from
        config = {key: value for key, value in self.config.items() if several or key != "chat_template"}
        files = {"tokenizer.json": json.loads(self.engine.to_str()), "tokenizer_config.json": config}
        if self.chat_template and not several:
            files["chat_template.jinja"] = self.chat_template
        return files

    @classmethod
    def from_folder(cls, folder):
        """Folder with tokenizer.json (and tokenizer_config.json, chat_template.jinja) -> Tokenizer."""
        from tokenizers import Tokenizer as Engine
        folder = Path(folder)
        path, config_path, template = (folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"))
        if not belongs(path):
            raise CheckpointError(f"{folder} has no tokenizer.json: only tokenizers of the `tokenizers` library are read")
        read_json(path)                                        # strictly, and against its digest
        try:
            engine = Engine.from_file(str(path))
        except Exception as error:                             # the library raises bare Exception
            raise CheckpointError(f"{path} can't be read: {error}") from error
        engine.no_truncation()                                 # what a file has of both is for training's batches: prompts are neither cut nor filled
        engine.no_padding()
        config, said = (read_json(path) if belongs(path) else {} for path in (config_path, folder / "special_tokens_map.json"))
        of_class = BERT_ROLES if type(engine.model).__name__ == "WordPiece" else {}
        for role in SPECIAL_ROLES:
            token = said.get(role) or of_class.get(role)      # older folders say roles beside the configuration, or leave them to the class
            if config.get(role) is None and token and engine.token_to_id(str(_content(token))) is not None:
                config[role] = token
            if not isinstance(_content(config.get(role)), (str, type(None))):
                raise CheckpointError(f'{config_path}: field "{role}" should be a token, got {config[role]!r:.80}')
        if belongs(template):
            config["chat_template"] = read_text(template, limit=TEMPLATE_BYTES)
        check_template(config.get("chat_template"), config_path)
        return cls(engine, config)


def train_bpe(texts, vocab=8192, *, specials=(END, PAD), length=None):
    """Iterable of texts -> Tokenizer: byte-level BPE of `vocab` tokens, GPT-2's splitting into words, `specials` first.

    The first special token begins and ends texts, the second (or the first) fills. length: model_max_length of the config."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Engine
    check_texts(texts)
    if not specials:
        raise InputError("specials should name at least one token: the first begins and ends texts")
    if vocab < 256 + len(specials):
        raise InputError(f"vocab should be at least {256 + len(specials)} (every byte and the special tokens), got {vocab}")
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n+"), "isolated"),         # a paragraph break is one token, which GPT-2's rule alone would halve
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(specials), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    texts = iter(texts)
    first = next((text for text in texts if text), None)
    if first is None:
        raise DataError("no text to learn a tokenizer from: there is none, or every text is empty")
    try:
        engine.train_from_iterator(itertools.chain([first], texts), trainer)
    except UnicodeEncodeError as error:
        raise DataError(f"a text holds half a character, {error.object[error.start:error.end]!r}: read it with its own encoding") from None
    config = {"tokenizer_class": "PreTrainedTokenizerFast",    # any other name makes transformers rebuild the splitting
              "bos_token": specials[0], "eos_token": specials[0], "unk_token": specials[0], "pad_token": specials[min(1, len(specials) - 1)],
              "clean_up_tokenization_spaces": False}
    if length:
        config["model_max_length"] = length
    return Tokenizer(engine, config)


def with_chat(tokenizer):
    """Tokenizer -> another one that knows CHAT_TEMPLATE and its special tokens, which come last."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Engine
    engine = Engine.from_str(tokenizer.engine.to_str())
    engine.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*(f"<|{role}|>" for role in ROLES), TURN_END)])
    return Tokenizer(engine, {**tokenizer.config, "chat_template": CHAT_TEMPLATE})


def checked_messages(messages):
    """A conversation as a list of {"role", "content"}, or InputError."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InputError(f'a conversation should be a list of {{"role": ..., "content": ...}}, got {messages!r:.80}')
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"} or not all(isinstance(text, str) for text in message.values()):
            raise InputError(f'message {number} should be {{"role": text, "content": text}}, got {message!r:.80}')
        if not re.fullmatch("[a-z][a-z_]{0,31}", message["role"]):
            raise InputError(f'message {number}: the role should be a word such as "user", got {message["role"]!r:.80}')
        check_characters(f"message {number}", message["content"])
    return list(messages)


def check_template(value, path):
    """CheckpointError unless a configuration's chat_template is a text, or [{"name", "template"}, ...]."""
    each = value if isinstance(value, list) else [{"template": value}]
    if value is not None and not all(isinstance(one, dict) and isinstance(one.get("template"), str) for one in each):
        raise CheckpointError(f"{path}: chat_template should be a text, or several as name and template, got {value!r:.80}")


def check_texts(texts):
    """InputError for a text where several are expected: a loop would take it letter by letter."""
    if isinstance(texts, str):
        raise InputError(f"expected a list of texts, got one text ({texts!r:.40}): put it into a list")


def check_characters(name, text):
    """InputError for text that UTF-8 has no bytes for."""
    if re.search("[\ud800-\udfff]", text):
        raise InputError(f"{name} holds half a character (a lone surrogate): it can't be encoded, leave it out")


def _content(token):
    """Special tokens are stored as text or as {"content": text, ...}."""
    return token.get("content") if isinstance(token, dict) else token
