"""textgen/slots.py: times, dates, numbers and names in a text, and conversations told with others of them."""
import random
import re

import pytest

from textgen.slots import JOINTS, Swaps, in_small_letters, recounted, shared, slots

TALK = [{"role": "user", "content": "A table at Sino in SF for 3 at 6:30 pm on March 3rd, please."},
        {"role": "assistant", "content": "Please confirm: a table at Sino in San Jose for 3 at 6:30 pm on March 3rd. Sino is $3."},
        {"role": "user", "content": "Not San Jose."},
        {"role": "assistant", "content": "Then not in San Jose. I offer Waterbar, call 408-3."}]


def other(name):
    return [{"role": "user", "content": f"I want {name} at 9 am for 7 on April 1st."},
            {"role": "assistant", "content": f"So {name} at 9 am for 7 on April 1st?"}]


@pytest.mark.parametrize("text, found", [
    ("Come at 11:30 am, 5 pm or 17:15.", {"11:30 am": "time", "5 pm": "time", "17:15": "time"}),
    ("On March 3rd or May 12", {"March 3rd": "date", "May 12": "date"}), ("a table for 4, $20 each", {"4": "number", "20": "number"}),
    ("we met at House of Prime Rib in New York", {"House of Prime Rib": "name", "New York": "name"}),
    ("Yes. Then I am there, OK?", {}), ("", {})])
def test_values_are_found_with_their_kind(text, found):
    assert slots(text) == found


def test_what_is_taken_up_again_knows_who_said_it_first():
    assert shared(TALK) == {"Sino": ("name", "user"), "3": ("number", "user"), "6:30 pm": ("time", "user"), "March 3rd": ("date", "user"),
                            "San Jose": ("name", "assistant")}


def test_values_are_swapped_everywhere_and_nothing_else_is():
    swaps = Swaps([other("Zola"), other("Quay")])
    told = [message["content"] for message in swaps(TALK, random.Random(0))]
    name = told[0].removeprefix("A table at ").partition(" in SF")[0]
    city = told[2].removeprefix("Not ").removesuffix(".")
    assert name != city and all(known_or_coined(word, ("Zola", "Quay")) for word in (*name.split(), *city.split()))
    assert told == [f"A table at {name} in SF for 7 at 9 am on April 1st, please.",
                    f"Please confirm: a table at {name} in {city} for 7 at 9 am on April 1st. {name} is $3.",
                    f"Not {city}.", f"Then not in {city}. I offer Waterbar, call 408-3."]
    assert [message["role"] for message in swaps(TALK, random.Random(0))] == [message["role"] for message in TALK]
    assert swaps(TALK, random.Random(1)) == swaps(TALK, random.Random(1)) and TALK[0]["content"].startswith("A table at Sino")


def test_a_well_known_name_that_the_assistant_says_first_stays():
    swaps = Swaps([other("Zola"), *[other("San Jose")] * 3], few=3)
    assert [message["content"] for message in swaps(TALK, random.Random(0))][2:] == [message["content"] for message in TALK[2:]]


def test_long_numbers_stay_as_long_and_names_may_be_made_of_others():
    talk = [{"role": "user", "content": "To 4656 Quigg Drive."}, {"role": "assistant", "content": "A ride to 4656 Quigg Drive?"}]
    swaps = Swaps([other("Zola"), other("Quay"), talk])
    joined = re.compile(f" (?:{'|'.join(map(re.escape, sorted(JOINTS, key=len, reverse=True)))})(?= )")
    told = {swaps(talk, random.Random(seed))[1]["content"] for seed in range(40)}
    numbers, names = zip(*(text.removeprefix("A ride to ").removesuffix("?").split(" ", 1) for text in told))
    assert all(len(number) == 4 for number in numbers) and len(set(numbers)) > 20
    said, known = {word for name in names for word in joined.sub(" ", name).split()}, {"Zola", "Quay", "Quigg", "Drive"}
    assert any(len(name.split()) > 2 for name in names)
    assert known < said and all(known_or_coined(word, known) for word in said)                     # and some that nobody has heard
    assert any(joined.search(name) for name in names)


def test_words_of_other_conversations_go_into_names_too():
    others = [[{"role": "user", "content": "What is a zeppelin? I need x5, incomprehensible."}]]           # three to twelve letters, no figures
    talk = [{"role": "user", "content": "To Quigg Drive."}, {"role": "assistant", "content": "A ride to Quigg Drive?"}]
    swaps = Swaps([other("Zola")], others=others)
    assert swaps.words == ["Need", "What", "Zeppelin", "Zola"]
    assert "Zeppelin" in " ".join(swaps(talk, random.Random(seed))[1]["content"] for seed in range(20))


def known_or_coined(word, known):
    """Whether it is one of the words, or the beginning of one with the end of another in small letters."""
    return word in known or any(word.startswith(a[:n]) and b.lower().endswith(word[n:]) and word[n:]
                                for a in known for b in known for n in range(1, len(a)))


def test_where_nothing_is_taken_up_the_conversation_is_the_same():
    talk = [{"role": "user", "content": "Good day."}, {"role": "assistant", "content": "Good day to you."}]
    assert Swaps([other("Zola")])(talk, random.Random(0)) is talk
    assert Swaps([])(TALK, random.Random(0)) is TALK


def test_in_small_letters_the_assistant_takes_up_what_was_written_and_else_writes_as_ever():
    lines = ("A table at Sino in San Jose at 7 PM.", "How about Oak Grill in San Jose?", "No, Sino.",
             "Please confirm: A table at Sino in San Jose at 7 PM, not at Oak Grill.")
    talk = [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]
    told = [message["content"] for message in in_small_letters(talk)]
    assert told == ["a table at sino in san jose at 7 pm.", "How about Oak Grill in san jose?", "no, sino.",
                    "Please confirm: A table at sino in san jose at 7 pm, not at Oak Grill."]
    assert [message["role"] for message in in_small_letters(talk)] == ["user", "assistant"] * 2


def test_rooms_and_nights_are_counted_anew_in_words_and_in_figures():
    lines = ["Two rooms for 3 nights, please. Not three.", "Please confirm: 2 rooms for 3 nights at Three Oaks, with 1 hotel room more.",
             "One room!", "1 room."]
    talk = [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]
    found = set()
    for seed in range(60):
        told = [message["content"] for message in recounted(talk, random.Random(seed))]
        word, rooms, nights, of_nights = re.match(r"(\w+) (rooms?) for (\d) (nights?), please. Not three.$", told[0]).groups()
        figure = ("One", "Two", "Three", "Four").index(word) + 1
        assert told[1] == f"Please confirm: {figure} {rooms} for {nights} {of_nights} at Three Oaks, with 1 hotel room more."
        assert (rooms == "room") == (figure == 1) and (of_nights == "night") == (nights == "1") and told[2:] == lines[2:]
        found |= {figure, nights}
    assert found == {2, 3, 4, *"123456789"}                # 1 is what the assistant said of itself: it stays, and is nobody else's
    assert talk[0]["content"] == lines[0]
