"""Text to ids and back: byte-level BPE by the `tokenizers` library, kept as a Hub tokenizer, chat templates included.

Sennrich et al. 2016 (byte pairs), Radford et al. 2019 (over bytes, so that nothing is unknown)."""
import json
from pathlib import Path

from gencore.check import CheckpointError, InputError

END = "<|endoftext|>"
PAD = "<|pad|>"
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
        """Text -> list of ids; special: with the tokens that the file's post-processor adds ([CLS], <s>)."""
        if not isinstance(text, str):
            raise InputError(f"expected text as str, got {type(text).__name__}")
        return self.engine.encode(text, add_special_tokens=special).ids

    def decode(self, ids, keep_special=False):
        """ids (T,) -> text; bytes that make no character become U+FFFD."""
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=not keep_special)

    def id(self, token):
        """The id of one token, or InputError."""
        found = self.engine.token_to_id(token)
        if found is None:
            raise InputError(f'the tokenizer has no token "{token}"')
        return found

    def chat(self, messages, *, prompt=True):
        """[{"role", "content"}] -> text by the folder's chat template; prompt: with the opening of the assistant's turn."""
        template = self.config.get("chat_template")
        if not template:
            raise InputError("this tokenizer has no chat template: give plain text instead of messages")
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        render = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template).render
        roles = {role: _content(self.config.get(role)) or "" for role in SPECIAL_ROLES}
        return render(messages=messages, add_generation_prompt=prompt, **roles)

    def files(self):
        """Files of a Hub tokenizer, for gencore.checkpoint.save_folder."""
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        files = {"tokenizer.json": json.loads(self.engine.to_str()), "tokenizer_config.json": config}
        if self.config.get("chat_template"):
            files["chat_template.jinja"] = self.config["chat_template"]
        return files

    @classmethod
    def from_folder(cls, folder):
        """Folder with tokenizer.json (and tokenizer_config.json, chat_template.jinja) -> Tokenizer."""
        from tokenizers import Tokenizer as Engine
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json: only tokenizers of the `tokenizers` library are read")
        try:
            engine = Engine.from_file(str(path))
            config_path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
            config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
        except Exception as error:                             # the library raises bare Exception
            raise CheckpointError(f"{path} can't be read: {error}") from error
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        return cls(engine, config)


def train_bpe(texts, vocab=8192, *, specials=(END, PAD), length=None):
    """Iterable of texts -> Tokenizer: byte-level BPE of `vocab` tokens, GPT-2's splitting into words, `specials` first.

    The first special token begins and ends texts, the second (or the first) fills. length: model_max_length of the config."""
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Engine
    if vocab < 256 + len(specials):
        raise InputError(f"vocab should be at least {256 + len(specials)} (every byte and the special tokens), got {vocab}")
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n+"), "isolated"),         # a paragraph break is one token, which GPT-2's rule alone would halve
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=list(specials), show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    engine.train_from_iterator(texts, trainer)
    config = {"tokenizer_class": "PreTrainedTokenizerFast",    # any other name makes transformers rebuild the splitting
              "bos_token": specials[0], "eos_token": specials[0], "unk_token": specials[0], "pad_token": specials[min(1, len(specials) - 1)],
              "clean_up_tokenization_spaces": False}
    if length:
        config["model_max_length"] = length
    return Tokenizer(engine, config)


def _content(token):
    """Special tokens are stored as text or as {"content": text, ...}."""
    return token.get("content") if isinstance(token, dict) else token
