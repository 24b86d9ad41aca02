"""Bookings that are made up: each thing is said once, by one side or the other, and taken up when the booking is confirmed.

    Bookings(words)(random.Random(0))       # [{"role": "user", "content": "I need a hotel in Oakland."}, ...]

Names are put together from words and halves of words and numbers are drawn, so that what was said has to be looked up: hotels by nights, rides to
places that came up earlier for as many as were spoken of (recorded conversations that go on with one of them: `by_days`, `by_ride`) or that the
user names, places that were turned down before another was taken, and changes of mind, often a mere "three rooms" or "9 pm", of which recorded
conversations have few. Where nobody says how many, it is one room and a table for two, as in the recorded ones. `made_talks` mixes all of them."""
import re

from textgen.slots import COUNTS, MONTHS, NAME, made_name

KNOWN = ("the airport", "the train station", "the bus station", "the city center", "downtown", "the mall", "my office", "the hospital")
SOON = ("today", "tomorrow", "the day after tomorrow")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
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
PLACE = re.compile(rf"(?i:\bconfirm\b).*\b(?i:table|reserv\w+|appointment|visit\w*)\b.*? (?:at|with|to)(?: the)? ({NAME})|"
                   rf"(?i:\b(?:event|concert|game|show|play\w*|perform\w*|takes? place)\b).* at(?: the)? ({NAME})(?=,| on | starting| at )")
ADDRESS = re.compile(rf"(?i:\b(?:address|located|at)\b).*?(?<![\w-])(?!\d+ (?:{MONTHS}|[AP]\.?M\b))"
                     rf"(\d+\w* {NAME}(?:,? (?:# ?\w+|Suite \w+|Unit \w+))?)")
BOOKED = re.compile(r"(?i:\bconfirm\b).*?\b(?:(\d) (?:tickets?|people|persons?)|for (\d)(?![\w:]| [ap]m| days?| nights?))")
BOOKS = re.compile(r"check|book|reserv|stay|night|room", re.IGNORECASE)
ROOMS = re.compile(r"\b(\d+|one|two|three|four) (?:hotel )?rooms?\b", re.IGNORECASE)
AGAIN = ("No, make it {0}.", "Wait, {0}, please.", "That's wrong, I want it {0}.", "{0}.", "{0}, please.", "No, {0}.", "Sorry, {0}.",
         "Could you change that? {0}.")
TAKEN = ("Sorry, I couldn't book that. Anything else?", "Unfortunately I was unable to book that for you.", "I failed to make a reservation.")
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
        """random.Random -> messages; sometimes other errands first, sometimes a place and then a ride to it."""
        city = draw.choice(CITIES) if draw.random() < 0.8 else self.name(draw, 1, 2)
        errands = (self.errand, lambda *where: draw.choice((self.sight, self.event, self.home, self.visit))(*where)[0])
        lines = [line for errand in errands if draw.random() < 0.3 for line in errand(draw, city, f"in {city}")]
        where = "there" if lines and draw.random() < 0.5 else f"in {city}"
        rides = draw.random() < 0.5
        booked = (self.hotel, self.hotel, self.table, self.table, self.house)
        kinds = (self.event, self.visit, self.home, self.sight, self.nowhere) if rides else booked
        more, place, people = draw.choice(kinds)(draw, city, where)
        lines += more
        if rides or draw.random() < 0.3:
            lines += self.ride(draw, place, people)
        if draw.random() < 0.3:
            lines += ["No, that's all. Thanks.", "Have a great day."]
        return turns(lines)

    # ---- what is named ----

    def name(self, draw, least=1, most=5):
        return made_name(self.words, draw, least, most)

    def address(self, draw):
        door = f" {draw.choice(('# ', '#', 'Suite ', 'Unit '))}{draw.randint(1, 400)}" if draw.random() < 0.2 else ""
        house = f"{draw.randint(1, 40)}, {self.name(draw, 1, 2)} {draw.choice(('Bldg', 'Building', 'Center'))}, " if draw.random() < 0.1 else ""
        return f"{house}{draw.randrange(1, 10 ** draw.randint(2, 5))} {self.name(draw, 1, 2)} {draw.choice(WAYS)}{door}"

    def date(self, draw):
        """-> (as the user says it, as the assistant does)."""
        day = draw.randint(1, 28)
        nth = f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
        return draw.choice((f"March {nth}", f"the {nth}", f"{nth} of March", f"the {nth} of this month")), f"March {nth}"

    def day(self, draw):
        """-> the same with the word before it: "on March 3rd"; "tomorrow", which both say alike; "next Friday", or "Friday next week"."""
        if draw.random() < 0.4:
            which, weekday = draw.choice(("this", "next")), draw.choice(WEEKDAYS)
            soon = draw.choice(SOON) if draw.random() < 0.4 else f"{which} {weekday}"
            return (soon, soon) if soon in SOON else (draw.choice((soon, soon, f"{weekday} {which} week")), soon)
        said, date = self.date(draw)
        return f"on {said}", f"on {date}"

    def time(self, draw):
        hour, minutes = draw.randint(1, 12), draw.choice(("00", "00", "15", "30", "45"))
        half = draw.choice(("am", "pm"))
        said = f"{hour} {half}" if minutes == "00" else f"{hour}:{minutes} {half}"
        when = {"am": "in the morning", "pm": "in the evening"}[half]
        full = "noon" if said == "12 pm" else f"{hour} o'clock {when}"
        loose = {"00": full, "15": f"quarter past {hour} {when}", "30": f"half past {hour} {when}"}.get(minutes, said)
        return draw.choice((said, said, loose)), said

    def at(self, draw):
        said, time = self.time(draw)
        return f"at {said}", f"at {time}"

    def count(self, draw, most):
        """-> (word or figure, figure)."""
        number = draw.randint(1, most)
        return draw.choice((str(number), COUNTS[number - 1])), number

    def party(self, draw, most=8, *, number=None):
        """-> ("for three", "three of us" or "3 people"; "for 3" or "for 3 people"), of so many or of that number."""
        said, number = self.count(draw, most) if number is None else (COUNTS[number - 1], number)
        people = f"{said} {'people' if number > 1 else 'person'}"
        return (draw.choice((f"for {said}", f"for {said}", f"for {people}", people, f"{said} of us" if number > 1 else "just me")),
                f"for {number}{draw.choice(('', ' people' if number > 1 else ' person'))}")

    def rooms(self, draw, *, number=None):
        said, number = self.count(draw, 4) if number is None else (COUNTS[number - 1], number)
        return f"{said} room{'s' * (number > 1)}", f"{number} room{'s' * (number > 1)}"

    def length(self, draw, unit):
        said, number = self.count(draw, 14)
        unit = unit if number > 1 else unit[:-1]
        return f"for {said} {unit}", f"for {number} {unit}"

    def start(self, draw):
        said, day = self.day(draw)
        return (f"from {said.removeprefix('on ')}",
                draw.choice((f"from {day.removeprefix('on ')}", f"starting {day}", f"checking in {day}")))

    # ---- talks: city and where the user says it is -> lines by turns, the user's first; where a ride would go; for how many, None: not said ----

    def errand(self, draw, city, _):
        """Something with numbers and days of its own, that goes before."""
        (_, tickets), (said, day) = self.count(draw, 5), self.day(draw)
        if draw.random() < 0.5:
            degrees, rain = draw.randint(50, 99), draw.randint(1, 90)
            return [f"What is the weather in {city} {said}?", f"It will be {degrees} degrees with {rain} percent chance of rain."]
        ask = f"Please confirm: {tickets} bus ticket{'s' * (tickets > 1)} to {city} {day}, leaving at {self.time(draw)[1]}."
        asked = [f"I want to take a bus to {city} {said}.", "How many tickets do you need?", f"{tickets}, please."]
        return [*asked, ask, draw.choice(YES), draw.choice(DONE)]

    def hotel(self, draw, city, where):
        hotel, stars = self.name(draw), draw.randint(1, 5)
        hotel = self.address(draw) if draw.random() < 0.1 else hotel
        wishes = ("I need a hotel {0}.", "Find me a place to stay {0}, please.", "I'm looking for a hotel {0}.")
        early = self.count(draw, 4) if draw.random() < 0.4 else None
        rooms = "" if early is None else phrase(draw, (" with {0} room{1}", " for {0} room{1}", ", {0} room{1}"), early[0], "s" * (early[1] > 1))
        lines = [phrase(draw, wishes, f"{where}{rooms}")]
        offer = ("{0} is a {1} star hotel.", "I found a {1} star hotel called {0}.", "How about {0}? It is a {1} star hotel.",
                 "There are {2} hotels you might like. One of them is {0}, which has {1} stars.", "What about the hotel named {0} with {1} stars?")
        lines += self.turned_down(draw, lambda: phrase(draw, offer, self.name(draw), draw.randint(1, 5), draw.randint(2, 10)))
        lines.append(phrase(draw, offer, hotel, stars, draw.randint(2, 10)))
        asked, address = self.aside(draw)
        return lines + asked + self.stay(draw, hotel, city, rooms=early and early[1]), both(hotel, address), None

    def stay(self, draw, hotel, city, *, rooms=None):
        """A hotel that was spoken of is booked by days; who says nothing of rooms, here or before (rooms), gets one."""
        unit, unsaid = draw.choice(("days", "days", "nights")), rooms is not None or draw.random() < 0.5
        length, start = self.length(draw, unit), self.start(draw)
        wanted = self.rooms(draw, number=rooms or 1) if unsaid else self.rooms(draw)
        facts = [(*length, "How long will you stay?"), (*start, "When do you check in?"), (*wanted, "How many rooms do you need?")]
        asked = ("Book me a room there", "I'd like to book it", "That works, please reserve it", "Great, make a reservation")
        lines = self.told(draw, draw.choice(asked), facts[:2] if unsaid else facts)
        fixed = [f"{draw.choice(('at ', 'at ', 'at the ', 'in hotel '))}{hotel}", f"in {city}"]
        changes = [(length[1], *self.length(draw, unit)), (start[1], *self.start(draw)), (wanted[1], *self.rooms(draw))]
        return self.confirmed(draw, lines, wanted[1], [*fixed, length[1], start[1]], changes=changes)[0]

    def by_days(self, messages, draw):
        """A recorded booking of a hotel -> the same up to where the user begins to book, who then says for how many days; None: it is no such one.

        Most recorded ones of the training part name the day of leaving, and few say early how many rooms: some do here."""
        found = next((found for message in messages if message["role"] == "assistant" and (found := STAY.search(message["content"]))), None)
        named = next((i for i, message in enumerate(messages) if found and found[1] in message["content"]), len(messages))
        cut = next((i for i in range(named, len(messages)) if messages[i]["role"] == "user" and BOOKS.search(messages[i]["content"])), None)
        if cut is None:
            return None
        messages = list(messages[:cut])
        asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
        said = [found[1].lower() for i in asked for found in ROOMS.finditer(messages[i]["content"])]
        rooms = (int(said[-1]) if said[-1].isdigit() else 1 + COUNTS.index(said[-1])) if said else None
        if rooms is not None and not 1 <= rooms <= len(COUNTS):
            return None                                                                 # a year, or a number of another kind in its place
        if asked and not said and draw.random() < 0.4:
            words, rooms = self.count(draw, 4)
            place, more = draw.choice(asked), phrase(draw, ("I need {0}.", "For {0}.", "There should be {0}.", "We need {0}."),
                                                     f"{words} room{'s' * (rooms > 1)}")
            messages[place] = {**messages[place], "content": f"{messages[place]['content']} {more}"}
        return [*messages, *turns(self.stay(draw, *found.groups(), rooms=rooms))]

    def by_ride(self, messages, draw):
        """A recorded talk of a place by its name and address -> the same up to its farewell, and a ride there; None: it is no such one.

        Recorded rides say the name or the address, one of them: whoever hears both is sure of either."""
        name = address = people = None
        for message in messages:
            if message["role"] == "assistant":
                if (found := PLACE.search(message["content"])) and (other := found[1] or found[2]) != name:
                    name, address = other, address if name is None else None                # an address of another place
                if found := ADDRESS.search(message["content"]):
                    address = found[1]
                if found := BOOKED.search(message["content"]):
                    people = int(found[1] or found[2])
        bye = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        if not name or not address or address in name or any(re.search(r"\b(?:cab|taxi|ride)\b", message["content"]) for message in messages):
            return None
        return [*messages[:bye], *turns(self.ride(draw, both(name, address), people))]

    def table(self, draw, city, where):
        place, address = self.name(draw), None
        early = self.count(draw, 8) if draw.random() < 0.25 else None
        where, named = where + (f" for {early[0]}" if early else ""), draw.random() < 0.25
        wishes = (("I'd like a table at {1} {0}.", "I want to eat at {1} {0}.", "Can you book {1} {0}?") if named else
                  ("I want to eat out {0}.", "Find me a restaurant {0}.", "I'd like a table somewhere {0}."))
        lines = [phrase(draw, wishes, where, place)]
        unsaid = early is not None or draw.random() < 0.25
        people = early[1] if early else 2 if unsaid else draw.randint(1, 8)
        party = self.party(draw, number=people)
        facts = [(*self.at(draw), "At what time?"), (*self.day(draw), "On what day?"), (*party, "For how many people?")]
        told = facts[:2] if unsaid else facts
        if named or draw.random() < 0.3:
            tried = ["Do you have a restaurant in mind?", phrase(draw, ("Try {0}.", "How about {0}?", "I'd like to go to {0}."), place)]
            lines += ([] if named else tried) + self.told(draw, None, told)
        else:
            offer = ("{0} is a nice restaurant in {1}.", "I found {0} in {1}.", "There are {2} restaurants. How about {0}?")
            asked, address = self.aside(draw)
            lines += self.turned_down(draw, lambda: phrase(draw, offer, self.name(draw), city, draw.randint(2, 10)))
            lines += [phrase(draw, offer, place, city, draw.randint(2, 10)), *asked]
            lines += self.told(draw, draw.choice(("Good, I'd like a table there", "That sounds nice, book it")), told)
        more = draw.randint(1, 8)
        changes = [(facts[0][1], *self.at(draw)), (facts[1][1], *self.day(draw)), (party[1], *self.party(draw, number=more))]
        what, clauses = draw.choice(("a table", "a reservation")), [f"at {place}", f"in {city}", *(fact[1] for fact in facts)]
        lines, agreed = self.confirmed(draw, lines, what, clauses, changes=changes)
        return lines, both(place, address), people if party[1] in agreed else more

    def house(self, draw, city, where):
        address, people = self.address(draw), draw.randint(1, 5)
        (first_said, first), (last_said, last), party = self.day(draw), self.date(draw), self.party(draw, number=people)
        lines = [phrase(draw, ("I need a house {0}.", "Search for a house to stay in {0}."), where),
                 phrase(draw, ("There is a nice house at {0} in {1}.", "How about the house located at {0}?"), address, city)]
        facts = [(f"checking in {first_said}", f"checking in {first}", "When will you check in?"),
                 (f"leaving on {last_said}", f"checking out on {last}", "When will you check out?"), (*party, "How many people are you?")]
        lines += self.told(draw, draw.choice(("Book it", "I'd like to reserve that one")), facts)
        said, last = self.date(draw)
        more = draw.randint(1, 5)
        changes = [(facts[1][1], f"until {said}", f"checking out on {last}"), (party[1], *self.party(draw, number=more))]
        clauses = [f"in {city}", *(fact[1] for fact in facts)]
        lines, agreed = self.confirmed(draw, lines, draw.choice(("a house", "the house")), clauses, changes=changes)
        return lines, address, people if party[1] in agreed else more

    def event(self, draw, city, where):
        """Something to see, perhaps with tickets: a ride is for as many, to the venue, whose address may have been asked for."""
        venue, event, address = self.name(draw), self.name(draw), self.address(draw)
        date, time, (said, tickets) = self.date(draw)[1], self.time(draw)[1], self.count(draw, 5)
        answers = ("{0} is at {1} on {2}.", "How about {0} at {1} on {2}?", "There is {0}. It takes place at {1} on {2}.")
        lines = [f"What is on {where}?", phrase(draw, answers, event, venue, f"{date} at {time}")]
        asked = [draw.choice(("What's the address?", "Where is that?")), phrase(draw, ("The address is {0}.", "It's at {0}."), address)]
        asked = asked if draw.random() < 0.6 else []
        if draw.random() < 0.3:
            return lines + asked, both(venue, address if asked else None), None
        ask = lambda n: f"Please confirm: {n} ticket{'s' * (n > 1)} for {event} on {date} in {city}."
        bought = [phrase(draw, ("I'd like {0} tickets.", "Get me {0} tickets, please."), said) if tickets > 1 else "I need one ticket.", ask(tickets)]
        if draw.random() < 0.25:
            tickets = draw.choice([n for n in range(1, 6) if n != tickets])
            bought += [f"No, I want {draw.choice((str(tickets), COUNTS[tickets - 1]))}.", ask(tickets)]
        bought += [draw.choice(YES), draw.choice(DONE)]
        return lines + (bought + asked if draw.random() < 0.5 else asked + bought), both(venue, address if asked else None), tickets

    def home(self, draw, city, where):
        name, address = self.name(draw), self.address(draw)
        answers = ("{0} is located at {1}.", "There are {2} apartments, one of them is {0} at {1}.", "How about {0}? You find it at {1}.")
        return [f"I'm looking for an apartment {where}.", phrase(draw, answers, name, address, draw.randint(2, 10))], both(name, address), None

    def sight(self, draw, city, where):
        name = self.name(draw)
        answers = ("You could visit {0}.", "{0} is a popular place.", "I found {1} attractions, such as {0}.")
        return [f"What is there to see {where}?", phrase(draw, answers, name, draw.randint(2, 10))], name, None

    def visit(self, draw, city, where):
        """Somebody whom one goes to see by appointment, at an address that may have been asked for."""
        name, address, kind = self.name(draw, 1, 4), self.address(draw), draw.choice(("dentist", "doctor", "stylist", "therapist"))
        time, day = self.at(draw), self.day(draw)
        lines = [f"Find me a {kind} {where}.", phrase(draw, ("How about {0}?", "I found {1}. One of them is {0}."), name, draw.randint(2, 10))]
        lines += [f"Good, I want to see them {day[0]} {time[0]}.", f"Please confirm: an appointment with {name} {time[1]} {day[1]}."]
        lines += [draw.choice(YES), draw.choice(DONE)]
        asked = draw.random() < 0.7
        lines += ["What's their address?", phrase(draw, ("They are located at {0}.", "It's at {0}."), address)] if asked else []
        return lines, both(name, address if asked else None), None

    def nowhere(self, draw, city, where):
        """Nothing was spoken of: the user says where to."""
        return [], None, None

    def ride(self, draw, place, people):
        """A ride to the place that was spoken of, or to one that the user names; for as many as were spoken of, if the user says no more."""
        there = "there"
        if place is None or draw.random() < 0.2:
            place = draw.choice((self.address(draw), self.name(draw), draw.choice(KNOWN)))
            there = f"to {place}"
        kinds = {"Regular": "regular", "Luxury": "luxury", "Pool": "shared", "shared": "shared"}
        kind = draw.choice(list(kinds))
        other = draw.choice([name for name, loose in kinds.items() if loose != kinds[kind]])
        known = people is not None and draw.random() < 0.7
        seats = people if known else draw.randint(1, 4)
        said, told = self.party(draw, number=seats)
        told = draw.choice((told, f"with {seats} seat{'s' * (seats > 1)}"))
        facts = [(f"a {kinds[kind]} one", f"{kind} ride", "Is a shared ride okay?" if kind == "shared" else "What type of ride do you prefer?"),
                 (said, told, "How many of you are going?")]
        asked = ("I need a cab {0}", "Book me a ride {0}", "Please find a taxi that takes me {0}", "Thanks, I also need a cab {0}")
        facts, when = facts[:1] if known else facts, [self.at(draw)] if draw.random() < 0.3 else []
        lines = self.told(draw, phrase(draw, asked, there), [*facts, *((*time, "When should it pick you up?") for time in when)])
        ride = f"a {kind} {draw.choice(('ride', 'cab'))}"
        changes = [(told, *self.party(draw, 4)), (told, *self.party(draw, 4)), (ride, f"a {kinds[other]} one", f"a {other} ride")]
        way = draw.choice(("to {}", "to go to {}", "going to {}")).format(place)
        changes += [(time, *self.at(draw)) for _, time in when]
        return self.confirmed(draw, lines, ride, [way, told, *(time for _, time in when)], changes=changes)[0]

    # ---- how it is said ----

    def aside(self, draw):
        """A question on the way, or nothing -> lines, and the address where it was that."""
        if draw.random() < 0.5:
            return [], None
        phone = f"{draw.randint(200, 999)}-{draw.randint(200, 999)}-{draw.randint(1000, 9999)}"
        address = self.address(draw)
        return draw.choice(((["What's the phone number?", f"The phone number is {phone}."], None),
                            (["Is it expensive?", "It is moderately priced."], None),
                            (["How much is it per night?", f"It is ${draw.randint(40, 400)}."], None),
                            (["What is the address?", f"It is at {address}."], address)))

    def turned_down(self, draw, offer):
        """None, one or two that are offered and not taken -> lines."""
        no = ("Is there another?", "What else is there?", "Something else, please.", "No, find me another one.")
        return [line for _ in range(draw.choice((0, 0, 0, 1, 1, 2))) for line in (offer(), draw.choice(no))]

    def told(self, draw, asked, facts):
        """The user asks (asked, with some of the facts; None: has asked already), and answers questions until every fact is told."""
        facts = draw.sample(facts, len(facts))
        now = draw.randint(0, len(facts)) if asked else 0
        lines = [", ".join((asked, *(said for said, _, _ in facts[:now]))) + "."] if asked else []
        for said, _, question in facts[now:]:
            lines += [question, f"{said[0].upper()}{said[1:]}."]
        return lines

    def confirmed(self, draw, lines, what, clauses, *, changes):
        """The assistant asks to confirm what was told; the user may think better of one thing, before or after, or it is taken; it is booked.

        changes: [(a part, as the user says another, as the assistant does)] -> lines, and the parts that were agreed upon at last."""
        parts, changes = (what, *clauses), [change for change in changes if change[0] != change[2]]
        before, said, after = draw.choice(changes) if changes else ("",) * 3
        changed = tuple(after if part == before else part for part in parts)

        def ask(what, *clauses):
            opening = draw.choice(OPENINGS)
            first = capital(what) if opening[-1] in "?:" and draw.random() < 0.7 else what
            return f"{opening} {first} {' '.join(draw.sample(clauses, len(clauses)))}."

        if changes and draw.random() < 0.15:
            lines, parts = [*lines[:-1], f"{lines[-1]} {phrase(draw, ('Or rather {0}.', 'Sorry, I mean {0}.', 'No, {0}.'), said)}"], changed
        lines = [*lines, ask(*parts)]
        if changes and parts is not changed and draw.random() < 0.4:
            bare = re.sub("^(?:at|on|for|from) ", "", said) if draw.random() < 0.4 else said
            lines += draw.choice(([capital(phrase(draw, AGAIN, bare))], [draw.choice(YES), draw.choice(TAKEN), f"Could you try it {said}?"]))
            lines, parts = [*lines, ask(*changed)], changed
        return [*lines, draw.choice(YES), draw.choice(DONE)], parts


def made_talks(recorded, swapped, draw):
    """Recorded conversations, told with other values (Swaps) -> made ones for ever.

    A third begin as recorded talks of hotels, to be booked by days, a third as recorded talks of places, to which a ride is booked, a third are
    made up whole."""
    made = Bookings(swapped.words)
    going_on = [(how, [messages for messages in recorded if how(messages, draw)]) for how in (made.by_days, made.by_ride)]
    while True:
        how, talks = draw.choice([*going_on, (None, None)])
        talk = how(swapped(draw.choice(talks), draw), draw) if talks else None
        yield talk or made(draw)


def capital(text):
    return text[0].upper() + text[1:]


def both(name, address):
    """Where a ride goes to: a place by its name and, where it was said, its address."""
    return f"{name} at {address}" if address else name
