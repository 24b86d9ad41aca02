"""textgen/chat.py and conversations.py: replies, streaming, conversations that outgrow the context, what is learnt from them, packing."""
import json
import warnings
from datetime import datetime

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gencore
from gencore.attention import AttentionConfig
from gencore.chat_template import at
from gencore.check import ConfigError, DataError, InputError
from gencore.checkpoint import resolve
from gencore.data import Batches
from gencore.layers import MLPConfig
from gencore.positions import RotaryConfig, restarting
from gencore.run_folder import save_checkpoint
from gencore.tokenizer import TURN_END, Tokenizer, train_bpe
from gencore.train import Run, TrainConfig, fit
from gencore.transformer import TransformerConfig
from textgen import CausalLM, Chat, conversations
from textgen.chat import base_of_run, chat_model
from textgen.confirmations import holds
from textgen.conversations import Packed, conversation_row, document_row, packed_loss, read_conversations, split_turns
from textgen.model import CausalLMConfig

STACK = TransformerConfig(width=32, layers=2, attention=AttentionConfig(heads=2), mlp=MLPConfig(48, True, "silu"), rotary=RotaryConfig())
TEXT = "I need a taxi at nine. A taxi will come at nine. Where is the hotel? The hotel is in the old town.\n" * 4
ASK = [{"role": "user", "content": "I need a taxi"}]
TALK = [{"role": "system", "content": "Be kind."}, *ASK, {"role": "assistant", "content": "At nine?"}, {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "In the old town."}]


def base(tied=True):
    torch.manual_seed(0)
    tokenizer = train_bpe([TEXT], 300)
    lm = CausalLM(CausalLMConfig(vocab=len(tokenizer), context=64, transformer=STACK, tied=tied, bos=0, eos=(0,), pad=1), tokenizer)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(3)
    return lm


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    chat_model(base()).save_pretrained(folder)
    return Chat.from_pretrained(folder)


# replies

@settings(max_examples=20)
@given(content=st.text("taxi é<|end>", max_size=12), temperature=st.sampled_from([0.0, 0.7, 2.0]), seed=st.integers(0, 1000))
def test_the_stream_is_the_reply(chat, content, temperature, seed):
    messages = [{"role": "user", "content": content}]
    settings_ = {"max_new_tokens": 12, "temperature": temperature, "seed": seed}
    reply = chat(messages, **settings_)
    assert "".join(chat.stream(messages, **settings_)) == reply == chat(messages, **settings_)


def test_the_reply_is_what_generate_writes_after_the_template(chat):
    prompt = chat.lm.tokenizer.chat(ASK)
    assert chat(ASK, temperature=0, max_new_tokens=9) == chat.lm.generate(prompt, temperature=0, max_new_tokens=9)[len(prompt):]


def test_the_reply_ends_at_the_end_of_the_turn():
    lm = chat_model(base(tied=False)).eval()
    end = lm.tokenizer.id(TURN_END)
    with torch.no_grad():
        lm.head.weight.zero_()
        lm.head.weight[lm.tokenizer.encode("a")[0]] = 1.0
        hidden = lm.hidden(torch.tensor([lm.tokenizer.chat_ids(ASK)]))[0, -1]
        lm.head.weight[end] = hidden                                                     # likeliest at once
    assert Chat(lm)(ASK, temperature=0) == ""
    with torch.no_grad():
        lm.head.weight[end] = 0
        lm.head.weight[0] = hidden                                                       # the text's own end does as well
    assert Chat(lm)(ASK, temperature=0) == ""
    assert end in lm.cfg.eos and 0 in lm.cfg.eos


def test_a_reply_is_replayed_from_its_recipe(chat, tmp_path):
    reply = chat(TALK[:4], max_new_tokens=8, seed=7, temperature=1.5, stop="zz")
    reply.save(tmp_path / "a.txt")
    assert gencore.replay(tmp_path / "a.txt") == reply
    assert reply.recipe.inputs == {"messages": TALK[:4]} and reply.recipe.seed == 7


def test_a_reply_of_a_template_that_says_the_date_is_replayed_on_another_day(chat, tmp_path):
    dated = '{{ strftime_now("%Y-%m-%d %H:%M:%S") }}' + chat.lm.tokenizer.chat_template
    tokenizer = Tokenizer(chat.lm.tokenizer.engine, {**chat.lm.tokenizer.config, "chat_template": dated})
    lm = CausalLM(chat.lm.cfg, tokenizer)
    lm.load_state_dict(chat.lm.state_dict())
    lm.save_pretrained(tmp_path / "m")
    with at(datetime(2001, 2, 3, 4, 5, 6)):
        reply = Chat.from_pretrained(tmp_path / "m")(ASK, max_new_tokens=8, seed=7, temperature=1.5)
    reply.save(tmp_path / "a.txt")
    assert reply.recipe.inputs["now"] == "2001-02-03T04:05:06" and gencore.replay(tmp_path / "a.txt") == reply
    kept = tmp_path / "a.txt.recipe.json"
    kept.write_text(kept.read_text().replace("2001-02-03T04:05:06", "yesterday"))
    with pytest.raises(InputError, match="now should be a time such as"):
        gencore.replay(tmp_path / "a.txt")


def test_oldest_turns_go_whole_and_are_not_lost_in_silence(chat):
    long = [TALK[0]] + [{"role": role, "content": f"{number} I need a taxi at nine."} for number in range(9) for role in ("user", "assistant")]
    long += [{"role": "user", "content": "Where?"}]
    with pytest.warns(UserWarning, match=r"outgrew the model's 64 tokens: its oldest (\d+) messages were left out") as caught:
        reply = chat(long, max_new_tokens=8, seed=0)
    left_out = int(str(caught[0].message).split("oldest ")[1].split()[0])
    assert left_out % 2 == 0 and 0 < left_out < 18
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chat([long[0], *long[1 + left_out:]], max_new_tokens=8, seed=0) == reply          # the system turn stays
    with pytest.raises(InputError, match="the last message has .* tokens .* there is room for 56 beside the reply"):
        chat([{"role": "user", "content": "taxi " * 60}], max_new_tokens=8)


@pytest.mark.parametrize("messages, words", [
    ([TALK[0]], "the conversation has no user turn"), (TALK[2:3], "the conversation has no user turn"), ([], "should be a list of"),
    (TALK, 'should end with a user turn, which is to be answered, got "assistant" last'), ([*ASK, TALK[0], *ASK], "only the first message"),
    ("hello", "should be a list of")])
def test_a_conversation_that_can_not_be_answered_is_named(chat, messages, words):
    with pytest.raises(InputError, match=words):
        chat(messages)
    with pytest.raises(InputError, match=words):
        chat.stream(messages)


def test_other_wrong_input_is_named(chat):
    with pytest.raises(InputError, match="no chat template: use CausalLM.generate"):
        Chat(base())
    with pytest.raises(InputError, match="max_new_tokens should be a whole number between 1 and 63"):
        chat(ASK, max_new_tokens=64)
    endless = Tokenizer(chat.lm.tokenizer.engine, {**chat.lm.tokenizer.config, "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    with pytest.raises(InputError, match="does not end the assistant's turn with a special token"):
        Chat(CausalLM(chat.lm.cfg, endless))


@pytest.mark.parametrize("tied", [True, False])
def test_a_chat_model_says_of_plain_text_what_its_base_said(tied, tmp_path):
    lm = base(tied)
    wider = chat_model(lm)
    ids = torch.tensor([lm.tokenizer.encode(TEXT)[:40]])
    with torch.no_grad():
        torch.testing.assert_close(wider(ids)[..., :len(lm.tokenizer)], lm(ids))
    assert wider.cfg.vocab == len(wider.tokenizer) == len(lm.tokenizer) + 4
    rows = wider.embedding.weight[-4:]
    assert (torch.pdist(rows) > 0.01).all()                                              # four tokens, not one
    assert chat_model(wider).cfg == wider.cfg                                            # nothing twice
    wider.save_pretrained(tmp_path / "m")
    assert CausalLM.from_pretrained(tmp_path / "m").cfg.eos == (0, wider.tokenizer.id(TURN_END))


def test_a_run_keeps_the_base_that_it_began_with(tmp_path):
    lm, other = base(), base()
    other.embedding.weight.data += 1
    made = base_of_run(tmp_path, lm, seed=3)
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    save_checkpoint(Run(tmp_path), 1, made.files(), {"step": 1})
    with pytest.raises(ConfigError, match="already holds a run"):
        base_of_run(tmp_path, other)
    for lm_then, seed in ((other, 3), (lm, 4)):
        with pytest.raises(ConfigError, match="is another model, or made of another base: give the base and the seed"):
            base_of_run(tmp_path, lm_then, seed=seed, resume=True)
    lm.save_pretrained(tmp_path / "mine" / "base")                                      # a folder of the user's own
    with pytest.raises(ConfigError, match="is another model"):
        base_of_run(tmp_path / "mine", CausalLM.from_pretrained(tmp_path / "mine" / "base"))
    assert len(CausalLM.from_pretrained(tmp_path / "mine" / "base").tokenizer) == len(lm.tokenizer)
    again = base_of_run(tmp_path, lm, seed=3, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters()))
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before


# what is learnt

def test_only_the_assistants_words_and_their_end_are_learnt(chat):
    tokenizer = chat.lm.tokenizer
    inputs, targets = conversation_row(tokenizer, TALK)
    learnt = [target for target in targets if target != -100]
    assert tokenizer.decode(learnt, keep_special=True) == "At nine?<|end|>In the old town.<|end|>"
    assert [*inputs, targets[-1]] == tokenizer.chat_ids(TALK, prompt=False)
    assert all(target in (-100, following) for target, following in zip(targets, inputs[1:]))


def test_a_template_with_a_newline_after_the_end_is_learnt_to_the_end(chat):
    source = ("{% for m in messages %}{{ m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}")
    tokenizer = Tokenizer(chat.lm.tokenizer.engine, {**chat.lm.tokenizer.config, "chat_template": source})
    _, targets = conversation_row(tokenizer, TALK)
    assert tokenizer.decode([t for t in targets if t != -100], keep_special=True) == "At nine?<|end|>In the old town.<|end|>"
    forgets = source.replace("+ m.content", "+ (m.content if loop.last or m.role != 'assistant' else '')")
    last = Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": forgets})
    with pytest.raises(InputError, match="writes message 2 in another way when more follows"):
        conversation_row(last, TALK)
    with pytest.raises(InputError, match="begins with the assistant's words"):
        conversation_row(tokenizer, TALK[2:])


REPLY = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
ONE_BY_ONE = ["", "{% for m in messages %}{{ m.role + ':' + m.content + '<|end|>\n' }}{% endfor %}" + REPLY]
IN_THEIR_WAY = [                                               # a system turn inside the first user's; one that may stand at the beginning alone
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages if m.role != 'system' %}"
    "{{ m.role + ':' + (system if loop.first else '') + m.content + '<|end|>' }}{% endfor %}" + REPLY,
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.role + ':' + m.content + '<|end|>' }}{% endfor %}" + REPLY]


@pytest.mark.parametrize("source", ONE_BY_ONE + IN_THEIR_WAY)
def test_turns_are_found_the_same_way_message_by_message(chat, source):
    tokenizer = Tokenizer(chat.lm.tokenizer.engine, {**chat.lm.tokenizer.config, "chat_template": source or chat.lm.tokenizer.chat_template})
    inert = [*TALK, {"role": "user", "content": "<|end|>"}, {"role": "assistant", "content": "Sold out <|end|> gone."}]
    for talk in (TALK, TALK[1:], inert):
        written = conversations.one_by_one(tokenizer, talk)
        if source in ONE_BY_ONE:
            assert conversations.joined_answers(tokenizer, talk, *written) == conversations.answers(tokenizer, talk)
        elif talk[0]["role"] == "system":
            assert written is None
        assert len(conversations.answers(tokenizer, talk)[1]) == sum(message["role"] == "assistant" for message in talk)


def test_a_long_conversation_is_written_as_often_as_it_has_messages(chat, monkeypatch):
    long, written, write = [TALK[0], *(TALK[1:] * 20)], [], Tokenizer.chat
    long = [message | {"content": f"{message['content']} {number}"} for number, message in enumerate(long)]
    monkeypatch.setattr(Tokenizer, "chat", lambda self, messages, **how: written.append(len(messages)) or write(self, messages, **how))
    for part in split_turns(chat.lm.tokenizer, long, 10_000):
        conversation_row(chat.lm.tokenizer, part)
    assert sum(written) < 8 * len(long)


def test_long_conversations_are_cut_before_a_users_turn(chat):
    tokenizer = chat.lm.tokenizer
    long = [TALK[0], *(TALK[1:] * 4)]
    parts = split_turns(tokenizer, long, 40)
    assert len(parts) > 1 and all(part[0] == TALK[0] and part[1]["role"] == "user" for part in parts)
    assert [message for part in parts for message in part[1:]] == long[1:]
    assert all(len(conversation_row(tokenizer, part)[0]) <= 40 for part in parts)
    assert split_turns(tokenizer, TALK, 1000) == [TALK]


def test_conversations_are_read_from_json_lines_and_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet
    odd = [{"role": "user", "content": "one\u2028two\u0085three"}, TALK[2]]               # which are no ends of lines in JSON
    rows = [{"messages": TALK, "split": "train"}, {"messages": odd, "split": "validation"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_conversations(tmp_path / "a.jsonl") == rows == read_conversations(tmp_path / "a.parquet")
    for content, words in ((b"", "holds no conversation"), (b"{", "can't be read as rows of JSON"), (b"\xff", "can't be read as rows"),
                           (b"[" * 100000, "can't be read as rows"),
                           (b'{"messages": [{"role": "user"}]}', "row 0: message 0 should be"), (b'{"talk": 1}', "row 0: a conversation should be")):
        (tmp_path / "b.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_conversations(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="no file"):
        read_conversations(tmp_path / "c.jsonl")
    with pytest.raises(DataError, match='row 0 has no "source": each needs messages, split, source'):
        read_conversations(tmp_path / "a.jsonl", columns=("split", "source"))
    (tmp_path / "bare.jsonl").write_text(json.dumps(TALK), encoding="utf-8")
    assert read_conversations(tmp_path / "bare.jsonl") == [{"messages": TALK}]


# packing

def test_positions_start_again_in_each_document():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [0, 1, 2, 2, 2, 2, 2, 2]])
    assert restarting(documents).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("learned", [False, True])
def test_a_packed_loss_is_the_sum_of_the_separate_losses(chat, learned):
    cfg = CausalLMConfig(vocab=chat.lm.cfg.vocab, context=64, learned_positions=learned,
                         transformer=TransformerConfig(width=32, layers=2, attention=AttentionConfig(heads=2),
                                                       rotary=None if learned else RotaryConfig()))
    lm, tokenizer = CausalLM(cfg), chat.lm.tokenizer
    rows = [conversation_row(tokenizer, TALK), document_row(tokenizer, "The hotel is in the old town."), conversation_row(tokenizer, TALK[1:3]),
            document_row(tokenizer, "A taxi"), document_row(tokenizer, TEXT[:80])]
    packed = Packed(rows, 64, pad=1)
    assert 1 < len(packed) < len(rows) and packed.cut == 0
    batch = {name: torch.stack([packed[i][name] for i in range(len(packed))]) for name in packed[0]}
    separate = [lm.loss(torch.tensor([inputs]), torch.tensor([targets])) for inputs, targets in rows]
    summed, count = packed_loss(lm, batch, None)
    torch.testing.assert_close(summed, sum(loss for loss, _ in separate), rtol=1e-5, atol=1e-5)
    assert count == sum(number for _, number in separate)
    blind, _ = lm.loss(batch["ids"], batch["targets"])                                   # the mask is what makes it so
    assert abs(float(blind.detach() - summed.detach())) > 1e-3


def test_rows_that_teach_nothing_or_too_much_are_counted(chat):
    tokenizer = chat.lm.tokenizer
    assert Packed([document_row(tokenizer, TEXT)], 16).cut == 1
    with pytest.raises(DataError, match="no row has anything to learn from"):
        Packed([conversation_row(tokenizer, ASK)], 64)


def test_a_chat_model_learns_its_answers(chat, tmp_path):
    lm = chat_model(base())
    talks = [[{"role": "user", "content": word}, {"role": "assistant", "content": answer}]
             for word, answer in (("taxi", "At nine."), ("hotel", "In the old town."), ("Where?", "I need a taxi."))]
    rows = Packed([conversation_row(lm.tokenizer, talk) for talk in talks], 64, pad=1)
    config = TrainConfig(steps=60, batch=2, lr=1e-2, warmup=5, save_every=0)
    fit(lm, packed_loss, Batches(rows, 2), config, run=Run(tmp_path / "run", progress=False))
    assert [Chat(lm)(talk[:1], temperature=0) for talk in talks] == [talk[1]["content"] for talk in talks]


# the chat that ships

def test_the_shipped_chat_books_a_hotel_and_a_ride_and_says_what_it_does_not_know():
    chat, talk, said = Chat.from_pretrained("chat"), [], []
    for line in ("I need a hotel in Rome.", "Book it for 3 nights from the 4th, two rooms.", "Yes, that's right.", "Who wrote Hamlet?",
                 "I need a cab there for two.", "A luxury one."):
        talk.append({"role": "user", "content": line})
        said.append(str(chat(talk, temperature=0)))
        talk.append({"role": "assistant", "content": said[-1]})
    assert said[1] == "Please confirm the following details: 2 rooms for 3 nights at Swins in Rome from March 4th."
    assert "don't know" in said[3] and all(word in said[5] for word in ("confirm", "2", "Luxury"))
    assert "".join(chat.stream(talk[:3], temperature=0)) == said[1]


def test_the_shipped_chat_keeps_what_was_said_of_a_table_over_six_turns():
    chat, talk, said = Chat.from_pretrained("chat"), [], []
    for line in ("I need a table for two in San Jose at 7 pm.", "Something Italian, please.", "On March 5th.", "Actually, make it three of us.",
                 "Yes, please."):
        talk.append({"role": "user", "content": line})
        said.append(str(chat(talk, temperature=0)))
        talk.append({"role": "assistant", "content": said[-1]})
    assert all(holds(said[2], slot) for slot in ("San Jose", "7 pm", "March 5th", "2"))
    assert all(holds(said[3], slot) for slot in ("San Jose", "7 pm", "March 5th", "3")) and "reservation" in said[4]


def test_transformers_opens_the_shipped_chat_and_says_the_same():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    chat, messages = Chat.from_pretrained("chat"), [{"role": "user", "content": "I need a hotel in Rome for 3 days."}]
    folder = resolve("chat", "textgen")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    said = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1]:]
    assert tokenizer.decode(said, skip_special_tokens=True) == chat(messages, temperature=0, max_new_tokens=40)


def test_a_long_conversation_is_fitted_by_few_readings(chat, monkeypatch):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"at {i}"} for i in range(401)]
    tokenizer, calls = chat.lm.tokenizer, []
    write = tokenizer.chat_ids
    monkeypatch.setattr(tokenizer, "chat_ids", lambda messages, **how: calls.append(len(messages)) or write(messages, **how))
    room = len(tokenizer.chat_ids(turns[-5:]))
    calls.clear()
    ids, left_out = chat.fitted(turns, room)
    assert (len(ids), left_out) == (room, 396) and len(calls) < 14
    assert chat.fitted(turns, room - 1)[1] == 398 and chat.fitted(turns[-5:], room)[1] == 0
