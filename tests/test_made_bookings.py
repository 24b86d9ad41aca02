"""textgen/made_bookings.py: speakers take turns, and whatever is asked to be confirmed was said before, by one side or the other."""
import random
import re
from itertools import islice

import pytest

from textgen.made_bookings import COUNTS, KNOWN, Bookings, made_talks
from textgen.slots import Swaps, slots

WORDS = "Sino Cha Grand Luna Park Inn Bella Oak Villette Royal".split()


@pytest.mark.parametrize("seed", range(4))
def test_speakers_take_turns_and_what_is_confirmed_was_said(seed):
    draw, make, confirmed = random.Random(seed), Bookings(WORDS), 0
    for _ in range(200):
        messages = make(draw)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) and len(messages) >= 4
        for place, message in enumerate(messages):
            if message["role"] == "assistant" and re.search(r"\bconfirm\b", message["content"]):
                said, confirmed = "\n".join(each["content"] for each in messages[:place]), confirmed + 1
                for value, kind in slots(message["content"]).items():
                    if kind == "name" and value.split()[0] not in ("Regular", "Luxury", "Pool"):
                        assert value in said, (value, messages[:place + 1])
                    if kind == "date":
                        assert value.split()[1] in said
    assert confirmed > 200


def test_a_draw_gives_the_same_again_and_others_differ():
    make = Bookings(WORDS)
    assert make(random.Random(3)) == make(random.Random(3)) != make(random.Random(4))


def test_users_speak_loosely_and_the_assistant_in_figures():
    make = Bookings(WORDS)
    times = dict(make.time(random.Random(seed)) for seed in range(300))
    assert all(re.fullmatch(r"\d{1,2}(:\d\d)? [ap]m", said) for said in times.values())
    assert {loose: said for loose, said in times.items() if loose.startswith("half past 7")}.items() <= {
        "half past 7 in the morning": "7:30 am", "half past 7 in the evening": "7:30 pm"}.items()
    assert times["noon"] == "12 pm" and ("just me", "for 1") in {make.party(random.Random(seed), number=1) for seed in range(40)}
    days = [make.day(random.Random(seed)) for seed in range(60)]
    assert all(said == told for said, told in days if not told.startswith("on ")) and {"tomorrow", "next Friday"} <= {told for _, told in days}
    assert all(said.startswith("on ") for said, told in days if told.startswith("on March"))
    assert make.date(random.Random(0))[1].startswith("March ") and make.count(random.Random(1), 4)[1] in range(1, 5)


def test_a_recorded_hotel_is_booked_by_days_and_others_are_none():
    make = Bookings(WORDS)
    texts = ("Find me a hotel in SF.", "How about the Grand Inn?", "What is its phone number?", "It is 555.", "Good, book it until the 9th.",
             "Please confirm: 2 rooms at the Grand Inn in San Francisco until March 9th.", "Yes.", "Done.")
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    early = 0
    for seed in range(40):
        told = make.by_days(talk, random.Random(seed))
        asked = next(message["content"] for message in told[4:] if "confirm" in message["content"].lower())
        assert [message["role"] for message in told] == ["user", "assistant"] * (len(told) // 2)
        assert all(now["content"].startswith(then["content"]) for now, then in zip(told[:4], talk))
        assert "Grand Inn" in asked and "in San Francisco" in asked and re.search(r"for \d+ (day|night)", asked)
        assert not any("until" in message["content"] for message in told)
        if said := [re.search(r"(\w+) rooms?\.", message["content"]) for message in told[:4] if message["content"] not in texts]:
            number, early = said[0][1], early + 1                                                         # told long before it is asked
            again = any(re.search(r"\broom", message["content"].replace("a room", "")) for message in told[4:] if message["role"] == "user")
            assert again or re.search(rf"\b{number if number.isdigit() else 1 + COUNTS.index(number)} room", asked, re.IGNORECASE), told
    assert 5 < early < 30
    talk[0]["content"] = "Find me a hotel with two rooms in SF."
    assert "2 rooms" in "".join(message["content"] for message in make.by_days(talk, random.Random(0))[4:])
    talk[0]["content"] = "Find me a hotel with 3455 rooms in SF."
    assert make.by_days(talk, random.Random(0)) is None
    talk[0]["content"] = texts[0]
    assert make.by_days(talk[:5], random.Random(0)) is None and make.by_days(talk[5:], random.Random(0)) is None
    assert make.by_days(talk[:1] + [talk[5] | {"content": "Please confirm: a table at Sino in Rome."}], random.Random(0)) is None


def test_a_ride_goes_where_the_talk_was_for_as_many_as_were_spoken_of_last():
    make, untold = Bookings(WORDS), 0
    for seed in range(400):
        draw = random.Random(seed)
        lines, place, people = make.event(draw, "Rome", "in Rome")
        talk = "\n".join(lines)
        venue, _, address = place.rpartition(" at ") if re.search(r"address is|It's at", talk) else (place, "", "")
        assert venue in talk and (not address or address in talk)
        booked = re.findall(r"confirm: (\d) ticket", talk)
        assert people == (int(booked[-1]) if booked else None)
        ride = make.ride(draw, place, people)
        asks = next(line for line in ride if "confirm" in line)
        if people and not re.search(r"for \w+[.,]|for \d|How many|people|person|of us|ust me", "\n".join(ride[:ride.index(asks)])):
            untold += 1
            assert re.search(rf"for {people}\b|with {people} seat", asks), (people, ride)
    assert untold > 60


def test_of_rooms_and_tables_that_nobody_counted_there_is_one_and_they_are_for_two():
    make = Bookings(WORDS)
    for kind, question, unsaid in ((make.hotel, r"\d rooms?\b|(?:one|two|three|four) rooms?\b", "1 room"),
                                   (make.table, r"people|person|of us|just me|"
                                    r"for (?:\d\b(?! ?[ap]m)|one|two|three|four|five|six|seven|eight)", "for 2")):
        silent = 0
        for seed in range(200):
            lines, *_ = kind(random.Random(seed), "Rome", "in Rome")
            asks = next(i for i, line in enumerate(lines) if "confirm" in line.lower())
            if not re.search(question, "\n".join(lines[:asks]).replace("hotel room in", ""), re.IGNORECASE):
                silent += 1
                assert unsaid in lines[asks], lines
        assert 20 < silent < 180


def test_a_recorded_talk_of_a_place_and_its_address_goes_on_with_a_ride_to_both():
    make = Bookings(WORDS)
    texts = ("Find me a table in Rome.", "How about Sino?", "Where is it?", "It is at 2033 Camden Avenue # F3.", "Book it.",
             "Please confirm a table for 3 at Sino in Rome at 7 pm.", "Yes.", "Done.", "Thanks, bye.", "Have a nice day.")
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    untold = 0
    for seed in range(40):
        told = make.by_ride(talk, random.Random(seed))
        asks = next(message["content"] for message in told[9:] if re.search(r"confirm", message["content"], re.IGNORECASE))
        assert told[:8] == talk[:8] and [message["role"] for message in told] == ["user", "assistant"] * (len(told) // 2)
        assert ("Sino at 2033 Camden Avenue # F3" in asks) == ("there" in told[8]["content"])                 # else to an address that the user gives
        untold += " for 3" in asks or "with 3 seats" in asks
    assert untold > 15
    assert make.by_ride(talk[:2] + talk[8:], random.Random(0)) is None                                    # no address
    assert make.by_ride(talk[:8] + [talk[8] | {"content": "And a cab."}, talk[9]], random.Random(0)) is None
    other = [*talk[:4], *talk[4:6], talk[6], talk[7] | {"content": "Please confirm a visit to Bella at 5 pm."}, *talk[8:]]
    assert make.by_ride(other, random.Random(0)) is None                                                  # the address of another place


def test_another_is_meant_by_a_mere_fragment_and_only_that_one_changes():
    make, fragments = Bookings(WORDS), 0
    for seed in range(3000):
        lines, *_ = make.table(random.Random(seed), "Rome", "in Rome")
        asks = [i for i, line in enumerate(lines[:-2]) if i % 2 and re.search("confirm", line, re.IGNORECASE)]
        if len(asks) == 2 and (found := re.fullmatch(r"(?:No, |Sorry, )?(\w+) of us(?:, please)?\.", lines[asks[1] - 1])):
            number = found[1] if found[1].isdigit() else 1 + COUNTS.index(found[1].lower())
            first, then = (slots(lines[i]) for i in asks)
            fixed = {value for value, kind in first.items() if kind in ("time", "date")}
            fragments += 1
            assert f"for {number}" in lines[asks[1]] and fixed <= then.keys(), lines
    assert fragments > 3


def test_a_place_may_be_turned_down_before_another_is_taken():
    make, down = Bookings(WORDS), 0
    for seed in range(200):
        lines, place, _ = make.table(random.Random(seed), "Rome", "in Rome")
        found = [i for i, line in enumerate(lines) if re.search("another|else", line, re.IGNORECASE)]
        down += bool(found)
        name = place.split(" at ")[0] if "located" not in place else place
        assert all(name in "\n".join(lines[i:]) for i in found)
    assert 40 < down < 160


def test_talks_are_made_of_recorded_ones_and_whole():
    texts = ("Find me a hotel in SF.", "How about the Grand Inn?", "Good, book it until the 9th.",
             "Please confirm: 2 rooms at the Grand Inn in San Francisco until March 9th.", "Yes.", "Done.")
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    made = list(islice(made_talks([talk], Swaps([talk]), random.Random(0)), 60))
    begun = [each for each in made if each[0]["content"].startswith("Find me a hotel in")]
    assert 10 < len(begun) < 40 and all(each[-1]["role"] == "assistant" for each in made)
    assert made == list(islice(made_talks([talk], Swaps([talk]), random.Random(0)), 60))


def test_a_restaurant_that_the_user_names_is_the_one_that_is_booked():
    make, named = Bookings(WORDS), 0
    for seed in range(200):
        lines, place, _ = make.table(random.Random(seed), "Rome", "in Rome")
        if place in lines[0]:
            named += 1
            asks = [line for line in lines if re.search(r"\bconfirm\b", line, re.IGNORECASE)]
            assert asks and all(f"at {place}" in line for line in asks) and not any("mind" in line or "found" in line for line in lines)
    assert 30 < named < 80


def test_a_ride_may_be_all_that_is_asked_for_to_a_place_that_everybody_knows_at_a_time():
    make, known, timed = Bookings(WORDS), 0, 0
    for seed in range(300):
        lines, place, people = make.nowhere(random.Random(seed), "Rome", "in Rome")
        assert not lines and place is people is None
        ride = make.ride(random.Random(seed), place, people)
        asks = [line for line in ride if re.search(r"\bconfirm\b", line, re.IGNORECASE)]
        to = next((where for where in KNOWN if any(where in line for line in ride)), None)
        known += to is not None
        assert to is None or all(to in line for line in [ride[0], *asks]), ride
        timed += any(re.search(r"at \d+(:\d\d)? [ap]m", line) for line in asks)
    assert 60 < known < 200 and 50 < timed < 200


def test_a_change_is_often_said_without_its_little_word():
    make, bare = Bookings(WORDS), set()
    for seed in range(1000):
        lines, *_ = make.table(random.Random(seed), "Rome", "in Rome")
        bare |= {line for line in lines[1::2] + lines[::2] if re.fullmatch(r"(?:No, |Sorry, )?\d+(?::\d\d)? [ap]m(?:, please)?[.]", line)}
    assert len(bare) > 5


def test_a_ride_is_for_as_many_as_were_agreed_upon_at_last():
    make, changed = Bookings(WORDS), 0
    for seed in range(600):
        for kind in (make.table, make.house):
            lines, _, people = kind(random.Random(seed), "Rome", "in Rome")
            said = [re.findall(r"for (\d+)(?= people| person| |[.])(?! [ap]m)", line) for line in lines if re.search("confirm", line, re.IGNORECASE)]
            said = [found for found in said if found]
            assert said[-1] == [str(people)], lines
            changed += said[0] != said[-1]
    assert changed > 40


def test_a_change_changes_something():
    make = Bookings(WORDS)
    for seed in range(300):
        lines, agreed = make.confirmed(random.Random(seed), ["Book it."], "a table", ["at 7 pm", "for 3"], changes=[("for 3", "for three", "for 3")])
        assert len(lines) == 4 and agreed == ("a table", "at 7 pm", "for 3")
