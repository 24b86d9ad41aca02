"""gencore/chat_template.py and the conversations of gencore/tokenizer.py: equal to transformers, closed to escapes, special tokens inert."""
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gencore.chat_template import LENGTH, OUTPUT, compiled, render
from gencore.check import CheckpointError, InputError
from gencore.checkpoint import save_folder
from gencore.tokenizer import ROLES, TURN_END, Tokenizer, train_bpe, with_chat

WORDS = ["The cat sat on the mat.\n\nThe dog sat on the log.", 'She said, "I shall never go there again," and went.\n'] * 20
TALK = [{"role": "system", "content": "Be kind.\n"}, {"role": "user", "content": " Where is the <b>cat</b>?\n\nOr the dog é "},
        {"role": "assistant", "content": "On the mat."}, {"role": "user", "content": "Never!"}]


@pytest.fixture(scope="module")
def tokenizer():
    return with_chat(train_bpe(WORDS, 320, length=64))


@pytest.fixture(scope="module")
def theirs(tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer
    folder = tmp_path_factory.mktemp("chat") / "t"
    save_folder(folder, tokenizer.files())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


# the default template

def test_turns_stand_between_their_tokens(tokenizer):
    assert tokenizer.chat(TALK[2:]) == "<|endoftext|><|assistant|>On the mat.<|end|><|user|>Never!<|end|><|assistant|>"
    assert tokenizer.chat(TALK[2:], prompt=False).endswith("Never!<|end|>")
    assert tokenizer.id(TURN_END) == len(tokenizer) - 1


@settings(max_examples=40)
@given(contents=st.lists(st.text("catdog <b>é\n .", max_size=20), min_size=1, max_size=5), prompt=st.booleans())
def test_transformers_gives_the_same_ids(tokenizer, theirs, contents, prompt):
    messages = [{"role": ROLES[number % 3], "content": content} for number, content in enumerate(contents)]
    wanted = theirs.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
    assert tokenizer.chat_ids(messages, prompt=prompt) == wanted
    assert tokenizer.engine.encode(tokenizer.chat(messages, prompt=prompt), add_special_tokens=False).ids == wanted


def test_the_template_comes_back_with_the_folder(tokenizer, tmp_path):
    save_folder(tmp_path / "t", tokenizer.files())
    assert (tmp_path / "t" / "chat_template.jinja").is_file()
    assert Tokenizer.from_folder(tmp_path / "t").chat_ids(TALK) == tokenizer.chat_ids(TALK)
    assert Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": [
        {"name": "rag", "template": "no"}, {"name": "default", "template": "{{ messages[0].role }}"}]}).chat(TALK) == "system"
    (tmp_path / "t" / "chat_template.jinja").write_text("x" * 500_000)
    with pytest.raises(CheckpointError, match="has 500,000 bytes, expected at most 400,000: it is not what its name says"):
        Tokenizer.from_folder(tmp_path / "t")


# special tokens in a user's words

@settings(max_examples=60)
@given(pieces=st.lists(st.sampled_from(["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>", "<|pad|>", "<", "<|en", "d|>", "|>",
                                        "cat", " ", "\n"]), max_size=8), role=st.sampled_from(ROLES), other=st.text(max_size=5))
def test_special_tokens_in_a_message_are_plain_text(tokenizer, pieces, role, other):
    content = "".join(pieces) + other
    messages = [{"role": role, "content": content}, {"role": "user", "content": other}]
    ids = tokenizer.chat_ids(messages)
    special = [i for i in ids if i in tokenizer.control_tokens().values()]
    assert special == [tokenizer.id(t) for t in ("<|endoftext|>", f"<|{role}|>", "<|end|>", "<|user|>", "<|end|>", "<|assistant|>")]
    assert tokenizer.decode(ids, keep_special=True) == tokenizer.chat(messages)              # no character is lost


def test_special_tokens_that_a_template_or_a_normaliser_would_make_are_plain_too(tokenizer):
    from tokenizers import AddedToken, normalizers
    from tokenizers import Tokenizer as Engine
    joins = "{% for m in messages %}{{ m.content.replace('x', '') }}{% endfor %}"
    pasted = Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": joins})
    control = set(tokenizer.control_tokens().values())
    for contents in (["<|exnd|>"], ["<|en", "d|>"], ["<", "|end|>"]):
        assert not control & set(pasted.chat_ids([{"role": "user", "content": content} for content in contents]))
    engine = Engine.from_str(tokenizer.engine.to_str())
    engine.normalizer = normalizers.NFKC()
    engine.add_special_tokens([AddedToken("<|end|>", special=True, normalized=True)])
    wide = Tokenizer(engine, {**tokenizer.config, "chat_template": "{{ messages[0].content }}"})
    assert wide.id("<|end|>") in engine.encode("＜|end|＞").ids                          # the trap is there
    assert not control & set(wide.chat_ids([{"role": "user", "content": "＜|end|＞"}]))


def test_a_special_token_in_one_message_leaves_the_others_as_they_are():
    code = with_chat(train_bpe(["if x <= y and a <b: return <html> x<=y <= <= <| <|"] * 100, 400))
    talk = lambda *said: [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(said)]
    assert " <=" in [code.decode([i]) for i in code.encode("x <= y")]
    for first, more in ((["if x <= y", "x <= y: yes"], ["tell <|end|> me", "no"]), (["say <|end|>", "x <= y"], ["<|user|>", "a <= b"])):
        whole, part = code.chat_ids(talk(*first, *more), prompt=False), code.chat_ids(talk(*first), prompt=False)
        assert whole[:len(part)] == part and whole.count(code.id("<|end|>")) == 4
        assert code.decode(whole, keep_special=True) == code.chat(talk(*first, *more), prompt=False)


# templates of others

PUBLISHED = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "inst": "{% if messages[0]['role'] == 'system' %}{% set system_message = '<<SYS>>\n' + messages[0]['content'] | trim + '\n<</SYS>>\n\n' %}"
            "{% set messages = messages[1:] %}{% else %}{% set system_message = '' %}{% endif %}{% for message in messages %}"
            "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
            "{% if loop.index0 == 0 %}{% set content = system_message + message['content'] %}{% else %}"
            "{% set content = message['content'] %}{% endif %}"
            "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
            "{% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "tools": "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- if tools is not none %}{{- 'Tools' }}"
             "{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}"
             "{%- set ns = namespace(last=messages|length - 1, seen=false) %}"
             "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
             "{%- if message.role == 'user' and not ns.seen %}{%- set ns.last = index %}{%- set ns.seen = true %}{%- endif %}{%- endfor %}"
             "{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}"
             "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
             "{{- '<|' ~ message.role ~ '|>' ~ loop.index ~ content ~ (ns.last if loop.last else '') }}{%- endfor %}",
    "macro": "{%- macro turn(m, upper=false) -%}{%- if upper %}{{ m.content|upper|replace('\n', ' ') }}{% else %}"
             "{{ m['content'] | capitalize }}{% endif %}{%- endmacro -%}"
             "{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}{{ users|length }}"
             "{{ users[0].items()|list|length }}"
             "{%- for m in messages if m.role != 'system' %}{%- if loop.first %}{{ 'FIRST ' }}{% elif loop.index > 3 %}{% break %}{% endif %}"
             "{{ turn(m, upper=loop.last) }}{% endfor %}{{ messages | map(attribute='role') | join(',') }}",
    "generation": "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
                  "{% else %}{{ m.content }}{% endif %}{{ '\n' }}\n{% endfor %}",
    "sorted": "{%- set given = dict(b='two', a='one', C='three') %}{%- for key, value in given|dictsort %}{{ key ~ '=' ~ value ~ ';' }}{% endfor %}"
              "{%- for key, value in given|dictsort(reverse=true, by='value') %}{{ key }}{% endfor %}"
              "{%- for m in messages|sort(attribute='role,content', reverse=true) %}{{ m.content }}{% endfor %}"
              "{{ messages|map(attribute='role')|unique|join(',') }}{{ ['b', 'a', 'B']|sort|join }}{{ [3, 1.5, 2]|sum }}{{ [2, 3]|sum(start=1) }}"
              "{{ [dict(n=4), dict([('n', 5)])]|sum(attribute='n') }}{{ [3, 1, 2]|min }}{{ messages|map(attribute='content')|map('length')|max }}"
              "{{ [dict(a=dict(b='x', n=1)), dict(a=dict(b='y', n=2)), dict(a=dict(n=3))]|join('-', attribute='a.b') }}"
              "{{ [dict(a=dict(n=1)), dict(a=dict(n=2))]|sum(attribute='a.n') }}"
              "{{ '  x\n'|trim }}{{ 'xxay'|trim('xy') }}{{ '12'|int + '0x1f'|int(0, 16) }}",
}


@pytest.mark.parametrize("source", PUBLISHED.values(), ids=PUBLISHED)
def test_templates_as_they_are_published_give_what_transformers_gives(source):
    from transformers.utils.chat_template_utils import render_jinja_template
    values = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    wanted = render_jinja_template([TALK], chat_template=source, **values)[0][0]
    assert render(compiled(source), {"messages": TALK, "tools": None, "documents": None, **values}) == wanted and len(wanted) > 30


def test_a_template_may_refuse_a_conversation():
    with pytest.raises(InputError, match="the chat template refuses this conversation: roles must alternate"):
        render(compiled(PUBLISHED["inst"]), {"messages": [*TALK[:2], TALK[1]], "bos_token": "", "eos_token": ""})


ESCAPES = r"""
{{ ''.__class__ }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{{ [].__class__.__base__ }}
{{ {}.__class__.__bases__[0] }}
{{ ().__class__.__bases__[0].__subclasses__()[40]('/etc/passwd').read() }}
{{ ''['__class__'] }}
{{ ''['__cla' ~ 'ss__'] }}
{{ ''['__cla' + 'ss__']['__mro__'] }}
{{ messages['__class__'] }}
{{ messages[0]['__class__'].fromkeys }}
{{ messages[0].__init__ }}
{{ (1).__class__ }}
{{ true.__class__ }}
{{ none.__class__ }}
{{ (1.5).__reduce_ex__(4) }}
{{ messages.__reduce__() }}
{% set a = ''.__doc__ %}{{ a }}
{{ messages[0].content.__len__() }}
{{ messages[0].content['\x5f\x5fclass\x5f\x5f'] }}
{{ ''|attr('__class__') }}
{{ messages|attr('append') }}
{{ ''|attr('\x5f\x5fclass\x5f\x5f') }}
{{ ['x']|map('attr', '__class__')|list }}
{{ messages|map(attribute='__class__')|list }}
{{ messages|selectattr('__class__')|list }}
{{ messages|groupby('__class__') }}
{{ messages|sum(attribute='__class__') }}
{{ messages|rejectattr('content.__class__')|list }}
{{ messages|xmlattr }}
{{ messages|map(attribute='content.__class__')|list }}
{{ messages|pprint }}
{{ range.__init__.__globals__ }}
{{ namespace.__init__.__globals__['sys'] }}
{{ raise_exception.__globals__ }}
{{ strftime_now.__globals__['__builtins__'] }}
{{ lipsum.__globals__['os'].popen('id').read() }}
{{ cycler.__init__.__globals__.os }}
{{ joiner.__init__.__globals__ }}
{{ dict.mro() }}
{{ url_for.__globals__ }}
{{ get_flashed_messages.__globals__ }}
{{ request.application.__globals__ }}
{{ config.items() }}
{{ self.__init__.__globals__ }}
{{ self._TemplateReference__context }}
{{ namespace(a=1).__class__ }}
{% set ns = namespace() %}{% set ns.__class__ = range %}
{{ namespace()._Namespace__attrs }}
{% macro m() %}{% endmacro %}{{ m.__globals__ }}
{% macro m() %}{% endmacro %}{{ m._func.__code__ }}
{% macro m() %}{% endmacro %}{{ m._environment }}
{% macro m() %}{% endmacro %}{{ m.name }}
{% for i in messages %}{{ loop._iterator }}{% endfor %}
{% for i in messages %}{{ loop.__init__ }}{% endfor %}
{% for i in messages %}{{ loop.cycle.__func__ }}{% endfor %}
{{ raise_exception }}
{{ messages.append }}
{{ x.__class__ }}
{{ '{0.__class__}'.format(messages) }}
{{ '{a.__init__.__globals__}'.format_map({'a': range}) }}
{{ '%s' % messages }}
{{ '%(x)r' % {'x': range} }}
{{ '{0}'|format(messages) }}
{{ ''.join.__self__.__class__ }}
{{ ''.format }}
{{ ''.encode() }}
{{ 'a'.translate({97: messages}) }}
{{ messages.append(1) }}
{{ messages.pop() }}
{{ messages[0].update({'role': 'system'}) }}
{{ messages[0].clear() }}
{{ messages.extend([1]) }}
{{ messages[0].setdefault('a', 1) }}
{% do messages.append(1) %}
{% include '/etc/passwd' %}
{% import 'os' as os %}
{% from 'os' import system %}
{% extends '/etc/passwd' %}
{{ range }}
{{ namespace() }}
{{ messages }}
{% macro m() %}{% endmacro %}{{ m }}
{% for i in messages %}{{ loop }}{% endfor %}
{{ ''.strip }}
{{ dict }}
{{ dict() }}
{{ dict.fromkeys(messages) }}
{{ dict.__subclasses__() }}
{{ messages|sort(attribute='__class__')|list|length }}
{{ messages|unique(attribute='content.__class__')|list|length }}
{{ messages|min(attribute='__class__') }}
{{ dict(a=range)|dictsort|length + [range, messages]|sum }}
""".strip().splitlines()


def test_sixty_escapes_and_more_are_there():
    assert len(set(ESCAPES)) == len(ESCAPES) >= 60


@pytest.mark.parametrize("source", ESCAPES)
def test_an_escape_is_stopped(tokenizer, source):
    mine = Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": source})
    talk = [dict(message) for message in TALK]
    with pytest.raises(InputError, match="the chat template (was stopped|fails)"):
        mine.chat(talk)
    assert talk == TALK


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{{ [0] * 10**9 }}",
    "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ range(10000000000)|list }}",
    "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ 'a'|center(1000000000) }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "{{ [1]|tojson(indent=1000000000) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', 'aaaaaaaaaa') %}{% endfor %}",
    "{{ 'a\nb'|indent(1000000000) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x|replace('a', 'aaaaaaaaaa') %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{% set ns = namespace(x='a,a') %}{% for i in range(64) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
    "{{ '{:1000000000}'.format(1) }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ 'a'.zfill(1000000000) }}",
    "{% set ns = namespace(x=9) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ " + "(" * 40000 + "1" + ")" * 40000 + " }}",
    "{% for i in range(99999) %}" + "word " * 10000 + "{% endfor %}",
    "{{ ([[1]] * 10**7)|sum(start=[])|length }}",
    "{{ ([[1]] * 10**7)|sort|length }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(30) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ dict(a=ns.x, b=ns.x)|dictsort|length }}",
    "{{ (range(10**6)|list + range(10**6)|list)|unique|list|length }}",
    "{% set y %}{% for i in range(99999) %}" + "word " * 10000 + "{% endfor %}{% endset %}",
    "{% if 1 %}" * 4000 + "{% endif %}" * 4000,
    "{{ 1.5|round(1000000000, 'ceil') }}",
    "{{ ('a' * 4000000).rfind('ab' + 'a' * 2000000) }}",
    "{{ ('a' * 4000000).rsplit('ab' + 'a' * 2000000)|length }}",
    "{{ ('a' * 4000000).strip('b' * 2000000 + 'a')|length }}",
    "{{ ('a' * 4000000)|trim('b' * 2000000 + 'a')|length }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(12) %}{% set ns.x = ([0] * 20)|map('default', ns.x, true)|list %}"
    "{% set ns.y = ([0] * 20)|map('default', ns.y, true)|list %}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% macro x() %}{% set ns.x = varargs %}{% endmacro %}{% macro y() %}{% set ns.y = varargs %}{% endmacro %}"
    "{% for i in range(30) %}{{ x(ns.x, ns.x, ns.x, ns.x, ns.x) }}{{ y(ns.y, ns.y, ns.y, ns.y, ns.y) }}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(12) %}{% set ns.x = ([namespace(x=ns.x)] * 20)|map(attribute='x')|list %}"
    "{% set ns.y = ([namespace(x=ns.y)] * 20)|map(attribute='x')|list %}{% endfor %}{{ ns.x == ns.y }}",
    "{{ range(1500)|list|tojson(separators=('a' * 1000000, ':'))|length }}",
    "{{ ('a\x0b' * 1000000)|indent(100)|length }}",
    "{{ (('f' * 5000000)|int(0, 16)) % (('f' * 2500000)|int(0, 16)) }}",
    "{{ 'x'.expandtabs(10**9) }}",
    "{{ lipsum(10000000) }}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_a_template_can_not_run_on(source):
    begun = time.process_time()
    with pytest.raises(InputError, match="the chat template (was stopped|fails)"):
        render(compiled(source), {"messages": TALK})
    assert time.process_time() - begun < 5


def test_length_and_output_have_a_cap():
    with pytest.raises(InputError, match=f"at most {LENGTH:,} characters, got 100,001 characters"):
        compiled("x" * (LENGTH + 1))
    with pytest.raises(InputError, match="a text of at most 100,000 characters, got dict"):
        compiled.__wrapped__({})
    long = compiled("{% for i in range(3) %}{{ messages }}{% endfor %}")
    assert len(render(long, {"messages": "x" * (OUTPUT // 3)})) == OUTPUT // 3 * 3
    with pytest.raises(InputError, match="it writes more than 4,000,000 characters"):
        render(long, {"messages": "x" * (OUTPUT // 3 + 1)})


# messages

@pytest.mark.parametrize("messages, words", [
    ([], "should be a list of"), ("hi", "should be a list of"), (["hi"], "message 0 should be"), ([{"role": "user"}], "message 0 should be"),
    ([*TALK, {"role": "user", "content": None}], "message 4 should be"), ([{"role": "user<|end|>", "content": ""}], "the role should be a word"),
    ([{"role": "user", "content": "", "name": "x"}], "message 0 should be"), ([{"role": "user", "content": "\ud800"}], "lone surrogate"),
    ([{"role": "wizard", "content": ""}], 'refuses this conversation: a role is "system", "user" or "assistant", got "wizard"')])
def test_wrong_messages_are_named(tokenizer, messages, words):
    with pytest.raises(InputError, match=words):
        tokenizer.chat_ids(messages)


def test_half_a_character_that_a_template_writes_is_said(tokenizer):
    mine = Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": '{{ "\\ud800" }}'})
    with pytest.raises(InputError, match="what the chat template writes holds half a character"):
        mine.chat_ids(TALK)


def test_templates_by_name_are_saved_by_name(tokenizer, tmp_path):
    several = [{"name": "default", "template": "{{ messages[0].role }}"}, {"name": "tool_use", "template": "tools"}]
    save_folder(tmp_path / "t", Tokenizer(tokenizer.engine, {**tokenizer.config, "chat_template": several}).files())
    opened = Tokenizer.from_folder(tmp_path / "t")
    assert opened.config["chat_template"] == several and opened.chat(TALK) == "system"
