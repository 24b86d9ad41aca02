"""Words: language models to generate with, to train and to take elsewhere."""

import gencore  # noqa: F401  (its torchaudio guard stands before transformers)
from gencore.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, {
    "CausalLM": "model", "CausalLMConfig": "model", "Text": "text", "bits_per_byte": "evaluate", "Chat": "chat", "LoRA": "lora",
    "preset": "presets", "MaskedLM": "masked", "TextClassifier": "masked", "Seq2SeqLM": "seq2seq", "Seq2SeqConfig": "seq2seq",
    "AttentionSeq2Seq": "additive", "AttentionSeq2SeqConfig": "additive",
    "Word2Vec": "word2vec", "Word2VecConfig": "negative_sampling", "load_word2vec": "word_files", "save_word2vec": "word_files",
})
