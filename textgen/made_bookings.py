"""Bookings that are made up: each thing is said once, by one side or the other, and taken up when the booking is confirmed.

    Bookings(words)(random.Random(0))       # [{"role": "user", "content": "I need a hotel in Oakland."}, ...]

Names are put together from words and halves of words and numbers are drawn, so that what was said has to be looked up: hotels by nights (recorded
conversations that go on with one: `by_days`), rides to places that came up earlier, and changes of mind, of which recorded conversations have few."""
import re

from textgen.slots import NAME, some_word

COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen")
SOON = ("today", "tomorrow", "the day after tomorrow", "next Monday", "next Tuesday", "next Wednesday", "next Thursday", "next Friday")
WAYS = ("Street", "Avenue", "Road", "Boulevard", "Way", "Drive", "Lane", "Place", "Court")
CITIES = ("San Francisco", "San Jose", "Oakland", "Berkeley", "Los Angeles", "San Diego", "Anaheim", "Sacramento", "Napa", "Santa Rosa", "Seattle",
          "Portland", "Vancouver", "Las Vegas", "Phoenix", "Denver", "Chicago", "Atlanta", "New York", "Philadelphia", "Washington", "London",
          "Paris", "Sydney", "Delhi", "Kuala Lumpur", "Nairobi", "Mexico City", "Rio de Janeiro", "Petaluma", "Livermore", "Hayward", "Novato")
OPENINGS = ("Please confirm the following details:", "Please confirm:", "To confirm:", "Please confirm the following:", "Okay, please confirm:",
            "Can you confirm the following details, please?", "Please confirm the following information:", "Sure, to confirm:",
            "Can you please confirm that you want", "Please confirm that you want", "Please confirm that you would like", "Please confirm you want",
            "Please confirm your booking for", "Could you confirm that you need", "Let me confirm:", "Please confirm to book",
            "Please confirm your reservation for", "Just to confirm, you want", "So to confirm, you want to book", "Okay, let's confirm the details:")
YES = ("Yes, that's right.", "Yes, please.", "That is correct.", "Yes, thanks.", "Sounds good.", "Perfect.")
STAY = re.compile(rf"(?i:\bconfirm\b).*\b(?:rooms?|hotel|check)\b.* (?:at|hotel)(?: the)? ({NAME}),? (?:hotel |located )?in ({NAME})")
BOOKS = re.compile(r"check|book|reserv|stay|night|room", re.IGNORECASE)
DONE = ("Your booking is confirmed.", "It has been booked.", "I have made the reservation.", "You're all set.", "The booking was successful.")


def phrase(draw, choices, *given):
    """One of the wordings, filled in."""
    return draw.choice(choices).format(*given)


def turns(lines):
    """Lines by turns, the user's first -> messages."""
    return [{"role": ("user", "assistant")[i % 2], "content": line} for i, line in enumerate(lines)]


class Bookings:
    """words: of which names are made."""

    def __init__(self, words):
        self.words = list(words)

    def __call__(self, draw):
        """random.Random -> messages; sometimes a place first, then a ride to it."""
        kinds = {"hotel": self.hotel, "table": self.table, "house": self.house}
        if draw.random() < 0.5:
            lines, place = (draw.choice((self.event, self.home, self.sight)))(draw)
            lines += self.ride(draw, place)
        else:
            lines, place = kinds[draw.choice(list(kinds))](draw)
            lines += self.ride(draw, place) if draw.random() < 0.3 else []
        if draw.random() < 0.3:
            lines += ["No, that's all. Thanks.", "Have a great day."]
        return turns(lines)

    # ---- what is named ----

    def name(self, draw, least=1, most=5):
        name = " ".join(some_word(self.words, draw) for _ in range(draw.randint(least, most)))
        return name[0].upper() + name[1:]

    def address(self, draw):
        return f"{draw.randrange(1, 10 ** draw.randint(2, 5))} {self.name(draw, 1, 2)} {draw.choice(WAYS)}"

    def date(self, draw):
        """-> (as the user says it, as the assistant does)."""
        day = draw.randint(1, 28)
        nth = f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
        return draw.choice((f"March {nth}", f"the {nth}", f"{nth} of March", f"the {nth} of this month")), f"March {nth}"

    def day(self, draw):
        """-> the same with the word before it: "on March 3rd", or "tomorrow", which both say alike."""
        if draw.random() < 0.3:
            soon = draw.choice(SOON)
            return soon, soon
        said, date = self.date(draw)
        return f"on {said}", f"on {date}"

    def time(self, draw):
        hour, minutes = draw.randint(1, 12), draw.choice(("00", "00", "15", "30", "45"))
        half = draw.choice(("am", "pm"))
        said = f"{hour} {half}" if minutes == "00" else f"{hour}:{minutes} {half}"
        when = {"am": "in the morning", "pm": "in the evening"}[half]
        loose = {"00": f"{hour} o'clock {when}", "15": f"quarter past {hour} {when}", "30": f"half past {hour} {when}"}.get(minutes, said)
        return draw.choice((said, said, loose)), said

    def count(self, draw, most):
        """-> (word or figure, figure)."""
        number = draw.randint(1, most)
        return draw.choice((str(number), COUNTS[number - 1])), number

    # ---- talks: lines by turns, the user's first ----

    def hotel(self, draw):
        city, hotel, other, stars = draw.choice(CITIES), self.name(draw), self.name(draw), draw.randint(1, 5)
        hotel = self.address(draw) if draw.random() < 0.1 else hotel
        wishes = ("I need a hotel in {0}.", "Find me a place to stay in {0}, please.", "I'm looking for a hotel room in {0}.")
        lines = [phrase(draw, wishes, city)]
        offer = ("{0} is a {1} star hotel.", "I found a {1} star hotel called {0}.", "How about {0}? It is a {1} star hotel.",
                 "There are {2} hotels you might like. One of them is {0}, which has {1} stars.", "What about the hotel named {0} with {1} stars?")
        if draw.random() < 0.3:
            lines += [phrase(draw, offer, other, draw.randint(1, 5), draw.randint(2, 10)), draw.choice(("Is there another?", "What else is there?"))]
        lines.append(phrase(draw, offer, hotel, stars, draw.randint(2, 10)))
        lines += self.aside(draw)
        return lines + self.stay(draw, hotel, city), hotel

    def stay(self, draw, hotel, city):
        """A hotel that was spoken of is booked by days; who says nothing of rooms gets one."""
        (rooms_said, rooms), (days_said, days), (day_said, day) = self.count(draw, 4), self.count(draw, 14), self.day(draw)
        alone = draw.random() < 0.5
        unit = draw.choice(("days", "days", "nights"))
        facts = [(f"for {days_said} {unit if days > 1 else unit[:-1]}", f"for {days} {unit if days > 1 else unit[:-1]}", "How long will you stay?"),
                 (f"from {day_said.removeprefix('on ')}", draw.choice((f"from {day.removeprefix('on ')}", f"starting {day}", f"checking in {day}")),
                  "When do you check in?"),
                 (f"{rooms_said} room{'s' * (rooms > 1)}", f"{rooms} room{'s' * (rooms > 1)}", "How many rooms do you need?")]
        asked = ("Book me a room there", "I'd like to book it", "That works, please reserve it", "Great, make a reservation")
        lines = self.told(draw, draw.choice(asked), facts[:2] if alone else facts)
        fixed = [f"{draw.choice(('at ', 'at ', 'at the ', 'in hotel '))}{hotel}", f"in {city}"]
        change = (facts[0][1], f"for {draw.randint(2, 9)} {unit}")
        return lines + self.confirmed(draw, "1 room" if alone else facts[2][1], [*fixed, facts[0][1], facts[1][1]], change)

    def by_days(self, messages, draw):
        """A recorded booking of a hotel -> the same up to where the user begins to book, who then says for how many days; None: it is no such one.

        Most recorded ones of the training part name the day of leaving."""
        found = next((found for message in messages if message["role"] == "assistant" and (found := STAY.search(message["content"]))), None)
        named = next((i for i, message in enumerate(messages) if found and found[1] in message["content"]), len(messages))
        cut = next((i for i in range(named, len(messages)) if messages[i]["role"] == "user" and BOOKS.search(messages[i]["content"])), None)
        return None if cut is None else [*messages[:cut], *turns(self.stay(draw, *found.groups()))]

    def table(self, draw):
        city, place = draw.choice(CITIES), self.name(draw)
        lines = [phrase(draw, ("I want to eat out in {0}.", "Find me a restaurant in {0}.", "I'd like a table somewhere in {0}."), city)]
        (people_said, people), (time_said, time), (day_said, day) = self.count(draw, 8), self.time(draw), self.day(draw)
        facts = [(f"at {time_said}", f"at {time}", "At what time?"), (day_said, day, "On what day?"),
                 (f"for {people_said}", f"for {people}{draw.choice(('', ' people' if people > 1 else ' person'))}", "For how many people?")]
        if draw.random() < 0.4:
            lines += ["Do you have a restaurant in mind?", phrase(draw, ("Try {0}.", "How about {0}?", "I'd like to go to {0}."), place)]
            lines += self.told(draw, None, facts)
        else:
            offer = ("{0} is a nice restaurant in {1}.", "I found {0} in {1}.", "There are {2} restaurants. How about {0}?")
            lines += [phrase(draw, offer, place, city, draw.randint(2, 10))] + self.aside(draw)
            lines += self.told(draw, draw.choice(("Good, I'd like a table there", "That sounds nice, book it")), facts)
        change = (facts[0][1], f"at {self.time(draw)[1]}")
        return lines + self.confirmed(draw, draw.choice(("a table", "a reservation")),
                                      [f"at {place}", f"in {city}", *(fact[1] for fact in facts)], change), place

    def house(self, draw):
        city, address = draw.choice(CITIES), self.address(draw)
        (people_said, people), (first_said, first), (last_said, last) = self.count(draw, 5), self.day(draw), self.date(draw)
        lines = [phrase(draw, ("I need a house in {0}.", "Search for a house to stay in, in {0}."), city),
                 phrase(draw, ("There is a nice house at {0} in {1}.", "How about the house located at {0}?"), address, city)]
        facts = [(f"checking in {first_said}", f"checking in {first}", "When will you check in?"),
                 (f"leaving on {last_said}", f"checking out on {last}", "When will you check out?"),
                 (f"for {people_said}", f"for {people} {'people' if people > 1 else 'person'}", "How many people are you?")]
        lines += self.told(draw, draw.choice(("Book it", "I'd like to reserve that one")), facts)
        change = (facts[1][1], f"checking out on {self.date(draw)[1]}")
        return lines + self.confirmed(draw, draw.choice(("a house", "the house")), [f"in {city}", *(fact[1] for fact in facts)], change), address

    def event(self, draw):
        venue, event, city = self.name(draw), self.name(draw), draw.choice(CITIES)
        when = f"{self.date(draw)[1]} at {self.time(draw)[1]}"
        answers = ("{0} is at {1} on {2}.", "How about {0} at {1} on {2}?", "There is {0}. It takes place at {1} on {2}.")
        return [f"What is on in {city}?", phrase(draw, answers, event, venue, when), *self.aside(draw)], venue

    def home(self, draw):
        name, address, city = self.name(draw), self.address(draw), draw.choice(CITIES)
        answers = ("{0} is located at {1}.", "There are {2} apartments, one of them is {0} at {1}.", "How about {0}? You find it at {1}.")
        return [f"I'm looking for an apartment in {city}.", phrase(draw, answers, name, address, draw.randint(2, 10)), *self.aside(draw)], address

    def sight(self, draw):
        name, city = self.name(draw), draw.choice(CITIES)
        answers = ("You could visit {0}.", "{0} is a popular place.", "I found {1} attractions, such as {0}.")
        return [f"What is there to see in {city}?", phrase(draw, answers, name, draw.randint(2, 10)), *self.aside(draw)], name

    def ride(self, draw, place):
        """A ride to the place that was spoken of, or to an address that the user gives."""
        there = "there"
        if draw.random() < 0.3:
            place = there = self.address(draw)
            there = f"to {there}"
        (seats_said, seats), kind = self.count(draw, 4), draw.choice(("Regular", "Luxury", "Pool"))
        loose = {"Regular": "regular", "Luxury": "luxury", "Pool": "shared"}[kind]
        facts = [(f"for {seats_said}", draw.choice((f"for {seats}", f"with {seats} seat{'s' * (seats > 1)}")), "How many of you are going?"),
                 (f"a {loose} one", f"{kind} ride", "What type of ride do you prefer?")]
        lines = self.told(draw, phrase(draw, ("I need a cab {0}", "Book me a ride {0}", "Please find a taxi that takes me {0}"), there), facts)
        way, change = draw.choice(("to {}", "to go to {}", "going to {}")).format(place), (facts[0][1], f"for {draw.randint(1, 4)}")
        return lines + self.confirmed(draw, f"a {kind} {draw.choice(('ride', 'cab'))}", [way, facts[0][1]], change)

    # ---- how it is said ----

    def aside(self, draw):
        """A question on the way, or nothing."""
        if draw.random() < 0.6:
            return []
        phone = f"{draw.randint(200, 999)}-{draw.randint(200, 999)}-{draw.randint(1000, 9999)}"
        return draw.choice((["What's the phone number?", f"The phone number is {phone}."], ["Is it expensive?", "It is moderately priced."],
                            ["How much is it per night?", f"It is ${draw.randint(40, 400)}."],
                            ["What is the address?", f"It is at {self.address(draw)}."]))

    def told(self, draw, asked, facts):
        """The user asks (asked, with some of the facts; None: has asked already), and answers questions until every fact is told."""
        facts = draw.sample(facts, len(facts))
        now = draw.randint(0, len(facts)) if asked else 0
        lines = [", ".join((asked, *(said for said, _, _ in facts[:now]))) + "."] if asked else []
        for said, _, question in facts[now:]:
            lines += [question, f"{said[0].upper()}{said[1:]}."]
        return lines

    def confirmed(self, draw, what, clauses, change):
        """The assistant asks to confirm; perhaps the user changes one thing; it is booked."""
        before, after = change

        def ask(parts):
            opening = draw.choice(OPENINGS)
            first = what[0].upper() + what[1:] if opening[-1] in "?:" and draw.random() < 0.7 else what
            return f"{opening} {first} {' '.join(draw.sample(parts, len(parts)))}."

        lines = [ask(clauses)]
        if draw.random() < 0.25 and before in clauses:
            lines += [phrase(draw, ("No, make it {0}.", "Wait, {0}, please.", "That's wrong, I want it {0}."), after),
                      ask([after if part == before else part for part in clauses])]
        return [*lines, draw.choice(YES), draw.choice(DONE)]
