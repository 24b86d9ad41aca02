"""Conversations and documents as training rows: the loss is on the assistant's words alone, and several share a window.

A row is (inputs, targets), both lists of ids; target -100 means that nothing is to be learnt there."""
import json
from functools import lru_cache
from itertools import chain
from pathlib import Path

from gencore.check import DataError, InputError
from gencore.data import pack_documents
from gencore.loss import IGNORED
from gencore.tokenizer import checked_messages
from textgen.chat import turn_end

ASKED = [{"role": "user", "content": "a"}]                     # what stands before a message to see what it adds


def read_conversations(path, columns=()):
    """A file of {"messages": [{"role", "content"}, ...]}, JSON lines or parquet -> list of rows, each checked; other columns stay.

    columns: those of the others that each row needs."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no file {path}: give a .jsonl or .parquet file with a conversation in each row")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (ValueError, OSError, RecursionError) as error:    # pyarrow's errors are ValueErrors, and so are those of JSON and UTF-8
        raise DataError(f"{path} can't be read as rows of JSON or parquet: {error}") from None
    for number, row in enumerate(rows):
        try:
            checked_messages(row["messages"] if isinstance(row, dict) and "messages" in row else row)
            rows[number] = row if isinstance(row, dict) else {"messages": row}               # a line may be the messages alone
        except InputError as error:
            raise DataError(f"{path}, row {number}: {error}") from None
        missing = [name for name in columns if name not in rows[number]]
        if missing:
            raise DataError(f'{path}, row {number} has no "{missing[0]}": each needs messages, {", ".join(columns)}')
    if not rows:
        raise DataError(f"{path} holds no conversation")
    return rows


def conversation_row(tokenizer, messages):
    """A conversation -> (inputs, targets): targets are the assistant's words and the token that ends its turn."""
    messages, end = checked_messages(messages), turn_end(tokenizer)
    if messages[0]["role"] == "assistant":
        raise InputError("the conversation begins with the assistant's words: put before them what they answer")
    written = one_by_one(tokenizer, messages)
    ids, spans = answers(tokenizer, messages) if written is None else joined_answers(tokenizer, messages, *written)
    learnt = [False] * len(ids)
    for start, stop in spans:
        last = max(i for i in range(start, stop) if ids[i] == end)
        learnt[start:last + 1] = [True] * (last + 1 - start)
    return ids[:-1], [i if yes else IGNORED for i, yes in zip(ids[1:], learnt[1:])]


def answers(tokenizer, messages):
    """-> (ids of the conversation, [(start, stop)] of the assistant's turns in them), whatever the template does: each turn is written anew."""
    ids, spans = tokenizer.chat_ids(messages, prompt=False), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            opened = tokenizer.chat_ids(messages[:number])
            closed = tokenizer.chat_ids(messages[:number + 1], prompt=False)
            if ids[:len(opened)] != opened or ids[:len(closed)] != closed:
                raise InputError(f"the chat template writes message {number} in another way when more follows, or its words in one token with "
                                 "what stands before: they can't be told from the rest")
            spans.append((len(opened), len(closed)))
    return ids, spans


def joined_answers(tokenizer, messages, opening, parts):
    """The same as `answers` from what `one_by_one` gives."""
    spans, reply, place = [], len(_reply(tokenizer)), len(opening)
    for message, part in zip(messages, parts):
        if message["role"] == "assistant":
            spans.append((place + reply, place + len(part)))
        place += len(part)
    return [*opening, *chain.from_iterable(parts)], spans


def one_by_one(tokenizer, messages):
    """-> (ids before the first message, ids of each message), or None where the template does not write one message after the other, each in its way.

    Most templates do, and then a long conversation takes as many renderings as it has messages, not their square."""
    try:
        parts = [_added(tokenizer, message["role"], message["content"]) for message in messages]
    except InputError:                                         # a template that wants its roles in turn
        return None
    ids, said = tokenizer.chat_ids(messages, prompt=False), list(chain.from_iterable(parts))
    opening, reply = ids[:max(0, len(ids) - len(said))], _reply(tokenizer)
    replied = all(part[:len(reply)] == reply for message, part in zip(messages, parts) if message["role"] == "assistant")
    return (opening, parts) if replied and ids == [*opening, *said] else None


@lru_cache(maxsize=20_000)
def _added(tokenizer, role, content):
    """Ids that a message adds to a conversation."""
    before = ASKED if role == "assistant" else [*ASKED, {"role": "assistant", "content": "b"}]
    opened = tokenizer.chat_ids(before, prompt=False)
    both = tokenizer.chat_ids([*before, {"role": role, "content": content}], prompt=False)
    if both[:len(opened)] != opened:
        raise InputError("the chat template writes a message in another way when more follows")
    return tuple(both[len(opened):])


@lru_cache(maxsize=16)
def _reply(tokenizer):
    """Ids that open the assistant's turn."""
    return tuple(tokenizer.chat_ids(ASKED)[len(tokenizer.chat_ids(ASKED, prompt=False)):])


def document_row(tokenizer, text):
    """A text -> (inputs, targets): every token is learnt, the end that follows it too."""
    ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
    return ids[:-1], ids[1:]


def split_turns(tokenizer, messages, length):
    """A conversation -> conversations of at most `length` inputs that cover it: cut before a user's turn, each with the system turn.

    One exchange that is longer stays whole: `Packed` cuts its end."""
    messages = checked_messages(messages)
    system = [message for message in messages[:1] if message["role"] == "system"]
    starts = [i for i in range(len(system), len(messages)) if messages[i]["role"] == "user" or i == len(system)]
    exchanges = [messages[a:b] for a, b in zip(starts, [*starts[1:], len(messages)])]
    written, parts = one_by_one(tokenizer, messages), []

    def size(exchanged):
        if written is None:
            return len(tokenizer.chat_ids([*system, *exchanged], prompt=False))
        return len(written[0]) + sum(len(_added(tokenizer, message["role"], message["content"])) for message in [*system, *exchanged])

    for exchange in exchanges:
        longer = [*parts[-1], *exchange] if parts else None
        if longer and size(longer) <= length + 1:
            parts[-1] = longer
        else:
            parts.append(list(exchange))
    return [[*system, *part] for part in parts]


class Packed:
    """Rows in windows of `length`, as a data set for gencore.data.Batches: each is {"ids", "targets", "documents"}, (length,) long.

    `cut`: how many rows were longer than a window and lost their end."""

    def __init__(self, rows, length, *, pad=0):
        rows = [row for row in rows if any(target != IGNORED for target in row[1][:length])]
        if not rows:
            raise DataError(f"no row has anything to learn from in its first {length} tokens: a conversation needs an assistant's turn that lies in "
                            "them; give a larger context where there is one")
        self.cut = sum(len(inputs) > length for inputs, _ in rows)
        self.ids, self.documents = pack_documents([inputs[:length] for inputs, _ in rows], length, pad=pad)
        self.targets, _ = pack_documents([targets[:length] for _, targets in rows], length, pad=IGNORED)      # placed by their lengths: as the ids

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"ids": self.ids[index], "targets": self.targets[index], "documents": self.documents[index]}


def packed_loss(model, batch, generator):
    """Loss for fit() over Packed rows: attention stops at the borders of documents, positions start again there."""
    return model.loss(batch["ids"], batch["targets"], documents=batch["documents"])
