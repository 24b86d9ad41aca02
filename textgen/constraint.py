"""Texts that match a regular expression or a JSON schema: a mask on the logits of every step, from llguidance, an optional library."""
import json

import torch

from gencore.check import InputError

AS_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}       # else a weak model goes on with spaces


def constrained(pick, matchers):
    """`pick` for decode, with -inf for every token after which the row could not match any more. matchers: one for each row."""
    def pick_step(logits, n):
        allowed = torch.stack([allowed_by(matcher) for matcher in matchers])[:, :logits.shape[1]]           # (B, V)
        tokens = pick(logits.masked_fill(~allowed.to(logits.device), float("-inf")), n)
        for matcher, token in zip(matchers, tokens.tolist()):
            if not matcher.is_stopped():                                                  # else the row has only its end to say
                matcher.consume_token(token)
        return tokens

    return pick_step


def allowed_by(matcher):
    """What may come next: (V,) bool."""
    allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8) > 0
    if matcher.is_error():
        raise InputError(f"the constraint can't be followed: {said(matcher)}")
    return allowed


def matchers_of(lm, constraint, rows):
    """A regular expression (str, in Rust's syntax) or a JSON schema (dict) -> a matcher for each row. JSON is spaced as json.dumps does it;
    "x-guidance" in the schema says otherwise."""
    try:
        from llguidance import LLMatcher, LLTokenizer
    except ImportError:
        raise InputError("a constraint needs the library llguidance: pip install llguidance") from None
    if not lm.cfg.eos:
        raise InputError("a constraint needs a model with an end token: this one could not say that its text is complete")
    try:
        grammar = LLMatcher.grammar_from_regex(constraint) if isinstance(constraint, str) \
            else LLMatcher.grammar_from_json_schema(constraint, defaults=AS_JSON_DUMPS)
    except ValueError as error:                              # no JSON, or half a character
        raise InputError(f"constraint: {error}") from None
    tokenizer = LLTokenizer(unspoken(lm.tokenizer), n_vocab=lm.cfg.vocab, eos_token=list(lm.cfg.eos))
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise InputError(f"constraint: {said(matcher)}")
    return [matcher.deep_copy() for _ in range(rows)]


def said(matcher):
    """What a matcher says of its error, in a line."""
    return " ".join(matcher.get_error().split("<state>")[0].split())


def unspoken(tokenizer):
    """tokenizer.json as llguidance gets it: a special token is called by what nobody writes, so that text which looks like one is spelt."""
    engine = json.loads(tokenizer.engine.to_str())
    vocab = engine["model"]["vocab"]
    for token in engine["added_tokens"]:
        if token["special"]:
            name, token["content"] = token["content"], f"\U000f0000{token['id']}\U000f0000"
            if name in vocab:                                    # of BPE, {token: id}; others have lists of pairs, or keep it apart
                vocab[token["content"]] = vocab.pop(name)
    return json.dumps(engine)
