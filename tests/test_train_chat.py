"""The lessons of the chat model, and what its benchmark calls a slot that was kept."""
import json
import sys

import pytest
import torch

from benchmarks.chat import kept_by_names, slots_kept
from gencore.check import DataError
from textgen import Chat, prefer_chat
from textgen.confirmations import bookings, confirm, confirmations, holds
from textgen.train_chat import UNKNOWN, ChatRun, lessons, main, new, windows


def turn(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


ASKED = turn("A table in Rome for 3, please.", "At what time?", "At 6 pm.", "On which day?", "On March 3rd at Luigi's.",
             "Anything else?", "No.", "Please confirm: a table for 3 in Rome at Luigi's on March 3rd at 6 pm, garden.")
ROWS = [{"source": "sgd", "split": "train", "topic": "Restaurants", "messages": ASKED},
        {"source": "star", "split": "train", "topic": "ride", "messages": turn("A ride home", "Where are you?", "In town", "At nine.")},
        {"source": "dolly_subset", "split": "train", "topic": "", "messages": turn("Why is the sky blue?", "Rayleigh scattering.")},
        {"source": "topical_chat", "split": "train", "topic": "", "messages": turn("Do you like jazz?", "It began in New Orleans.")}]


def test_questions_are_answered_by_not_knowing_and_other_sources_are_left_out():
    talks = lessons(ROWS, "train", 0.0)
    assert talks[:2] == [ASKED, ROWS[1]["messages"]] and len(talks) == 3
    assert talks[2][0]["content"] == "Why is the sky blue?" and talks[2][1]["content"] in UNKNOWN
    assert all("don't know" in text for text in UNKNOWN)


def test_conversations_of_other_sources_or_splits_are_named():
    for split, rows in (("validation", ROWS), ("train", [row | {"source": "mine"} for row in ROWS])):
        with pytest.raises(DataError, match=f'no row has the split "{split}" and one of the sources sgd, star, .*finetune_lora.py'):
            lessons(rows, split, 0.0)


def test_an_aside_stands_between_two_exchanges():
    for seed in range(8):
        talk = lessons(ROWS[:1] + ROWS[2:3], "train", 1.0, seed=seed)[0]
        place = next(i for i, message in enumerate(talk) if message["content"] == "Why is the sky blue?")
        assert place % 2 == 0 and talk[place + 1]["content"] in UNKNOWN and talk[:place] + talk[place + 2:] == ASKED


def test_a_booking_is_told_with_other_values():
    other = {"source": "sgd", "split": "train",
             "messages": turn("For 5 at 9 am in Oslo on May 1st at Zola.", "So 5 at 9 am in Oslo on May 1st at Zola?")}
    talk = lessons([*ROWS[:1], other], "train", 0.0, swaps=1.0)[0]
    first, last = talk[0]["content"], talk[-1]["content"]
    assert first != ASKED[0]["content"] and first.split()[3] in last and "May 1st" in last and "9 am" in last and len(talk) == len(ASKED)


def test_made_bookings_are_lessons_beside_the_recorded_ones():
    recorded, both = lessons(ROWS, "train", 0.0), lessons(ROWS, "train", 0.0, made=5)
    made = [talk for talk in both if talk not in recorded]
    assert len(both) == len(recorded) + 5 and all(talk[0]["role"] == "user" and talk[-1]["role"] == "assistant" for talk in made)


def test_all_speakers_or_the_assistant_alone_are_learnt():
    talks = lessons(ROWS, "train", 0.0)
    tokenizer = new(ChatRun(vocab=300, width=32, layers=1, heads=1, mlp=32), talks).tokenizer
    everyone, assistant = (windows(tokenizer, talks, ChatRun(speakers=speakers, context=512)) for speakers in ("all", "assistant"))
    real = everyone.documents >= 0
    assert (everyone.targets[real] >= 0).all() and 0 < (assistant.targets >= 0).sum() < real.sum()


def test_a_slot_is_what_the_confirmation_repeats():
    (before, theirs, slots), = confirmations(ASKED)
    assert not confirmations(ASKED[2:])                                        # too little stands before it
    assert before == ASKED[:-1] and slots == ["3", "6 pm", "Luigi's", "March 3rd", "Rome"]
    assert holds("in ROME.", "Rome") and not holds("Romeo", "Rome") and not holds("13 of us", "3")


def test_slots_kept_counts_words_of_the_answer(monkeypatch):
    echo = lambda messages, temperature: "A table for 3" if len(messages) > 1 else "No."
    monkeypatch.setattr("benchmarks.chat.confirm", lambda chat, before, theirs: ["Please confirm: for 3 in rome" if len(before) > 1 else "No."])
    found = slots_kept(echo, bookings(ROWS, "train"), 10)
    assert (found["kept"], found["kept_free"], found["floor"], found["turns_that_kept_all"]) == (0.4, 0.2, 0.0, 0.0)
    assert found["examples"][0]["lost"] == ["6 pm", "Luigi's", "March 3rd"]


def test_other_names_are_put_into_conversations_to_judge_on(monkeypatch):
    asked = []
    monkeypatch.setattr("benchmarks.chat.confirm", lambda chat, before, theirs: [asked.append(theirs) or theirs])
    assert kept_by_names(None, bookings(ROWS, "train"), ["quagmire zeppelin harpsichord"], 10) == {"their own": 1.0, "of other words": 1.0}
    own, others = asked[:len(asked) // 2], asked[len(asked) // 2:]
    assert "Luigi's" in own[0] and own != others and bookings(ROWS, "test") == []


def test_an_opened_turn_begins_with_the_words_of_people():
    torch.manual_seed(0)
    chat = Chat(new(ChatRun(vocab=300, width=32, layers=1, heads=1, mlp=32), lessons(ROWS, "train", 0.0)).eval())
    turns = [text for part in (ASKED[:-1], ASKED[:1]) for text in confirm(chat, part, ASKED[-1]["content"])]
    assert all(text.startswith("Please confirm") and len(text) > len("Please confirm") for text in turns)
    ways = confirm(chat, ASKED[:-1], ASKED[-1]["content"], ways=3, temperature=1.0, seed=5)
    assert len(set(ways)) == 3 and ways[1:2] == confirm(chat, ASKED[:-1], ASKED[-1]["content"], temperature=1.0, seed=6)


def test_the_way_that_keeps_more_is_preferred_and_the_peoples_own_where_all_lose(monkeypatch):
    chat = Chat(new(ChatRun(vocab=300, width=32, layers=1, heads=1, mlp=32), lessons(ROWS, "train", 0.0)).eval())
    turn, = confirmations(ASKED)
    whole = "Please confirm: 3 in Rome at Luigi's on March 3rd at 6 pm"
    answers = iter([["Please confirm: 3", whole, "Please confirm"], ["Please confirm: 3", "Please confirm"], [whole, whole]])
    monkeypatch.setattr(prefer_chat, "confirm", lambda *a, **k: next(answers))
    pairs, kept = prefer_chat.preferred(chat, [turn] * 3, prefer_chat.Plan(turns=3, ways=3))
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [(whole, "Please confirm"), (ASKED[-1]["content"], "Please confirm")]
    assert all(pair["prompt"] == ASKED[:-1] for pair in pairs) and kept == (1 + 5 + 0 + 1 + 0 + 5 + 5) / (7 * 5)


def test_what_is_asked_to_be_kept_stands_in_the_peoples_own_turn():
    talk = turn("A table in Rome, 3 chairs.", "When?", "On Friday at 6 pm.", "Confirm: a table in Rome on the 3rd.")
    assert confirmations(talk, least=3)[0][2] == ["3", "Rome"]
    plan = prefer_chat.Plan(made=0.0, swaps=0.0, small=0.0)
    before, theirs, wanted = next(prefer_chat.asked([ROWS[0] | {"messages": talk}], plan, 0))
    assert before == talk[:3] and theirs == talk[3]["content"] and wanted == ["Rome"]
    before, theirs, wanted = next(prefer_chat.asked([ROWS[0] | {"messages": talk}], prefer_chat.Plan(made=0.0, swaps=0.0, small=1.0), 0))
    assert before[0]["content"] == "a table in rome, 3 chairs." and theirs == "Confirm: a table in rome on the 3rd." and wanted == ["Rome"]


def test_only_hotels_are_asked_for_where_it_says_so():
    talk = turn("A table in Rome for 3.", "Confirm: a table in Rome for 3.", "And 2 rooms there.", "Confirm: 2 rooms in Rome.")
    plan = prefer_chat.Plan(made=0.0, swaps=0.0, small=0.0, hotels=1.0)
    for seed in range(4):
        turns = prefer_chat.asked([ROWS[0] | {"messages": [*talk[2:], *talk]}], plan, seed)
        assert {next(turns)[1] for _ in range(8)} == {"Confirm: 2 rooms in Rome."}
    with pytest.raises(DataError, match="in which a hotel's booking is confirmed"):
        next(prefer_chat.asked([ROWS[0] | {"messages": ASKED}], plan, 0))


def test_after_a_change_the_rest_is_asked_for_as_well(monkeypatch):
    changed = turn("Make it 7 pm.", "Please confirm: a table at 7 pm for 3.")
    talk = [*ASKED, *changed]
    before, theirs = talk[:-1], talk[-1]["content"]
    assert prefer_chat.unchanged(before, theirs) == ["Rome", "Luigi's", "March 3rd"]
    for reply, kept in (("At Luigi's Other Place.", ["March 3rd"]), ("Make it tomorrow.", ["Rome", "Luigi's"]), ("No, a garden.", [])):
        assert prefer_chat.unchanged([*before[:-1], {"role": "user", "content": reply}], theirs) == kept, reply
    assert prefer_chat.unchanged(ASKED[:-1], ASKED[-1]["content"]) == [] == prefer_chat.unchanged([*ASKED, *turn("No.", "Why?", "At 7 pm.")], theirs)
    plan = prefer_chat.Plan(made=0.0, swaps=0.0, small=0.0, changes=1.0)
    assert next(prefer_chat.asked([ROWS[0] | {"messages": talk}], plan, 0)) == (before, theirs, ["3", "7 pm", "Rome", "Luigi's", "March 3rd"])
    chat = Chat(new(ChatRun(vocab=300, width=32, layers=1, heads=1, mlp=32), lessons(ROWS, "train", 0.0)).eval())
    more = "Please confirm: 3 in Rome at 7 pm"
    answers = iter([[more, "Please confirm"], ["Please confirm", "Please confirm: 3"]])
    monkeypatch.setattr(prefer_chat, "confirm", lambda *a, **k: next(answers))
    pairs, _ = prefer_chat.preferred(chat, [(before, theirs, ["3", "7 pm", "Rome"])] * 2, prefer_chat.Plan(turns=2, ways=2))
    assert [pair["chosen"] for pair in pairs] == [more, theirs]                   # who says more than people do is preferred to them


def test_what_is_invented_or_said_over_and_over_is_worth_less():
    (before, theirs, wanted), = confirmations(ASKED)
    worth = lambda way: prefer_chat.worth(way, before, theirs, wanted)
    whole = "Please confirm: 3 in Rome at Luigi's on March 3rd at 6 pm"
    assert worth(whole) == worth(theirs) == len(wanted) == 5
    assert worth(whole + " in Paris") == 4 and worth(whole + " for 3") == 5
    assert worth(whole + ", from March 3rd") == 4 and worth(whole + ", please, please") == 4 and worth("Please confirm: 3 in Rome, in Rome") == 0


def test_the_trainer_leaves_a_chat_model(tmp_path, monkeypatch, capsys):
    import pyarrow
    import pyarrow.parquet
    held = [row | {"split": "validation"} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS + held), tmp_path / "talks.parquet")
    small = ["vocab=300", "width=32", "layers=1", "heads=1", "mlp=32", "context=256", "train.batch=2", "train.steps=2", "train.precision=float32"]
    common = ["train_chat", "--data", str(tmp_path / "talks.parquet")]
    monkeypatch.setattr(sys, "argv", [*common, "--out", str(tmp_path / "base"), *small])
    main()
    further = ["--out", str(tmp_path / "chat"), "--base", str(tmp_path / "base" / "model"), "speakers=assistant"]
    monkeypatch.setattr(sys, "argv", [*common, *further, *small])
    main()
    assert isinstance(Chat.from_pretrained(tmp_path / "chat" / "model")(turn("Hello")), str)
    monkeypatch.setattr(sys, "argv", [*common, *further, *small, "speakers=all", "--resume", "train.steps=3"])
    with pytest.raises(SystemExit):
        main()
    assert "begun with other settings (speakers was 'assistant', is 'all')" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["prefer_chat", "--data", str(tmp_path / "talks.parquet"), "--base", str(tmp_path / "chat" / "model"), "--out",
                                      str(tmp_path / "kept"), "turns=3", "ways=2", "swaps=0", "made=0", "train.batch=2", "train.steps=1"])
    prefer_chat.main()
    monkeypatch.setattr(prefer_chat, "preferred", None)                           # hours of work, before which it should be said
    with pytest.raises(SystemExit):
        prefer_chat.main()
    assert "already holds a run at step 1" in capsys.readouterr().err
    assert Chat.from_pretrained(tmp_path / "kept" / "model").lm.cfg == Chat.from_pretrained(tmp_path / "chat" / "model").lm.cfg
    rows = [json.loads(line) for line in (tmp_path / "chat" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and "held_out_loss" in rows[-1] and list((tmp_path / "chat" / "samples").iterdir())


def test_a_template_that_goes_on_behind_the_end_is_learnt_as_it_is():
    talks = [ASKED[:2]]
    tokenizer = new(ChatRun(vocab=300, width=32, layers=1, heads=1, mlp=32), talks).tokenizer
    tokenizer.config["chat_template"] = tokenizer.config["chat_template"].replace('"<|end|>"', '"<|end|>.\\n"')
    ids = tokenizer.chat_ids(talks[0], prompt=False)
    row = windows(tokenizer, talks, ChatRun(speakers="all", context=128))[0]
    assert [i for i in row["targets"].tolist() if i >= 0] == ids[1:] and tokenizer.decode(ids).endswith("\n")
