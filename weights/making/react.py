"""Description => code pairs for the article's React example: small JSX components, described in plain words.

    python weights/making/react.py pairs.jsonl --n 20000             # for `gptcli finetune`: prompt and completion
    python weights/making/react.py held-out.jsonl --n 500 --held-out # descriptions that no other set has
    python weights/making/react.py code.jsonl --n 8000 --code-only   # components without descriptions
    python weights/making/react.py pairs.jsonl --n 40000 --examples 0.4  # 4 of 10 rows with examples before the case

Every description has exactly one right answer. One in ten descriptions, by the hash of its meaning, is held out: the
training pairs hold each word and each kind of component, but never these combinations.

Rows with examples are prompts of `gptcli generate --example`. In half of them the examples show a component that a
house has made for itself, `<SadLamp tint="red">stop</SadLamp>` for a red button, under a name drawn for that row: only
who reads the examples can go on with it. In the others they show nothing new, and must change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from gptcli.pairs import Pair
from gptcli.priming import primed

COLOURS = "red blue green yellow pink purple orange black white gray brown gold silver".split()
SAYINGS = (
    "stop go yes no help play run jump sing dance eat sleep read write draw paint build fix open close start end "
    "save send buy sell add share like love smile laugh cry hug kiss wave hello goodbye welcome thanks sorry "
    "please hooray more less"
).split()
THINGS = (
    "cat dog bird fish frog bear fox cow pig duck horse mouse rabbit lion tiger tree flower leaf apple banana "
    "pear plum cake cookie bread milk soup egg ball doll car truck train boat plane kite book pencil hat shoe "
    "coat sock bed chair table lamp cup spoon box bag toy drum bell star moon sun cloud rain snow river lake hill "
    "park farm house shop school garden beach"
).split()
PEOPLE = "name age mom dad friend teacher brother sister city street birthday email phone school job pet".split()
ADJECTIVES = "big little happy sad funny silly brave kind new old fast slow soft warm cold nice".split()

PROPERTIES = "color tint paint fill tone look".split()
MOST_EXAMPLES = 3

HELD_OUT = "\0"  # marks what is made of a held-out part

Rng = random.Random
Made = tuple[str, str]  # description, code


def _saying(r: Rng) -> str:
    kind = r.random()
    if kind < 0.5:
        return r.choice(SAYINGS)
    if kind < 0.8:
        return f"{r.choice(SAYINGS)} {r.choice(THINGS)}"
    return f"{r.choice(ADJECTIVES)} {r.choice(THINGS)}"


def _says(r: Rng, text: str) -> str:
    return r.choice(("that says {}", "saying {}", "with the text {}")).format(text)


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _style(name: str, colour: str | None) -> str:
    return f' style={{{{ {name}: "{colour}" }}}}' if colour else ""


def _colour(r: Rng, share: float = 0.75) -> str | None:
    return r.choice(COLOURS) if r.random() < share else None


def _named(colour: str | None, noun: str) -> str:
    return _a(f"{colour} {noun}" if colour else noun)


def button(r: Rng) -> Made:
    colour, text = _colour(r), _saying(r)
    return f"{_named(colour, 'button')} {_says(r, text)}", f"<button{_style('background', colour)}>{text}</button>"


def heading(r: Rng) -> Made:
    colour, text = _colour(r, 0.5), _saying(r)
    size, tag = r.choice((("big", "h1"), ("", "h2"), ("small", "h3")))
    noun = " ".join(filter(None, (size, colour, "heading")))
    return f"{_a(noun)} {_says(r, text)}", f"<{tag}{_style('color', colour)}>{text}</{tag}>"


def paragraph(r: Rng) -> Made:
    colour, text = _colour(r), _saying(r)
    return f"{_named(colour, 'paragraph')} {_says(r, text)}", f"<p{_style('color', colour)}>{text}</p>"


def items(r: Rng) -> Made:
    names = r.sample(THINGS, r.choice((2, 3, 3, 4)))
    ordered = r.random() < 0.4
    tag = "ol" if ordered else "ul"
    said = ", ".join(names[:-1]) + f" and {names[-1]}"
    rows = "\n".join(f"  <li>{name}</li>" for name in names)
    return f"{'a numbered list' if ordered else 'a list'} of {said}", f"<{tag}>\n{rows}\n</{tag}>"


def field(r: Rng) -> Made:
    whose, what = r.choice(("your", "her", "his", "our")), r.choice(PEOPLE)
    said = r.choice(("an input for {}", "an input that asks for {}", "a text box for {}")).format(f"{whose} {what}")
    return said, f'<input placeholder="{whose} {what}" />'


def checkbox(r: Rng) -> Made:
    text = _saying(r)
    return f"a checkbox {_says(r, text)}", f'<label><input type="checkbox" /> {text}</label>'


def picture(r: Rng) -> Made:
    adjective, thing = r.choice((None, *ADJECTIVES)), r.choice(THINGS)
    noun = f"{adjective} {thing}" if adjective else thing
    return f"{r.choice(('a picture', 'an image'))} of {_a(noun)}", f'<img src="{thing}.png" alt="{_a(noun)}" />'


def link(r: Rng) -> Made:
    thing, text = r.choice(THINGS), _saying(r)
    return f"a link to the {thing} page {_says(r, text)}", f'<a href="/{thing}">{text}</a>'


def counter(r: Rng) -> Made:
    start, by = r.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50, 100)), r.choice((1, 1, 2, 3, 4, 5, 10))
    said = "a counter" + (f" that starts at {start}" if start else "") + (f" and counts by {by}" if by > 1 else "")
    code = (
        "function Counter() {\n"
        f"  const [count, setCount] = useState({start});\n"
        f"  return <button onClick={{() => setCount(count + {by})}}>{{count}}</button>;\n"
        "}"
    )
    return said.replace("counter and", "counter that"), code


SIMPLE: tuple[Callable[[Rng], Made], ...] = (button, button, heading, paragraph, items, field, checkbox, picture, link)


def box(r: Rng) -> Made:
    colour, (said, code) = r.choice(COLOURS), r.choice(SIMPLE)(r)
    if is_held_out(code):
        code = HELD_OUT + code
    return f"{_a(colour)} box with {said}", f"<div{_style('background', colour)}>\n{_indented(code)}\n</div>"


def pair(r: Rng) -> Made:
    (first, one), (second, two) = r.choice(SIMPLE)(r), r.choice(SIMPLE)(r)
    if is_held_out(one) or is_held_out(two):
        one = HELD_OUT + one
    return f"{first}, then {second}", f"<>\n{_indented(one)}\n{_indented(two)}\n</>"


def _indented(code: str) -> str:
    return "\n".join("  " + line for line in code.split("\n"))


KINDS = (*SIMPLE, *SIMPLE, counter, box, box, pair, pair)


def is_held_out(code: str) -> bool:
    """By the answer, so that another wording of a held-out component is held out too. Counters are too few."""
    return HELD_OUT in code or ("Counter" not in code and hashlib.sha256(code.encode()).digest()[0] % 10 == 0)


def made(seed: int, *, held_out: bool) -> Iterator[Made]:
    """Description and code, without end, no description twice."""
    r, seen = random.Random(seed), set[str]()
    while True:
        said, code = r.choice(KINDS)(r)
        if said not in seen and is_held_out(code) == held_out:
            seen.add(said)
            yield said, code.replace(HELD_OUT, "")


# --- rows with examples ----------------------------------------------------------------------------------------------


def house(r: Rng, *, held_out: bool) -> tuple[str, str]:
    """What a house calls a component of its own, and its colour: two words as in SadLamp, and a property."""
    while True:
        name = "".join(r.choice(words).capitalize() for words in (ADJECTIVES + SAYINGS, THINGS + PEOPLE))
        if (hashlib.sha256(name.encode()).digest()[0] % 10 == 0) == held_out:
            return name, r.choice(PROPERTIES)


def in_house(code: str, name: str, prop: str) -> str | None:
    """A component of one line as that house writes it; None for one without a colour, which would not show how."""
    whole = re.fullmatch(r'<(\w+) style={{ \w+: ("\w+") }}>(.*)</\1>', code)
    return whole and f"<{name} {prop}={whole[2]}>{whole[3]}</{name}>"


def made_in_house(r: Rng, n: int, *, held_out: bool) -> list[Made]:
    """n of one kind, all as one house writes them, and no description twice. Held out: the house and the components."""
    (name, prop), kind, found = house(r, held_out=held_out), r.choice((button, heading, paragraph)), dict[str, str]()
    while len(found) < n:
        said, code = kind(r)
        if is_held_out(code) == held_out and (changed := in_house(code, name, prop)):
            found[said] = changed
    return list(found.items())


def made_with_examples(seed: int) -> Iterator[Made]:
    """Prompts of one to three examples and a case, in the default format of `gptcli generate --example`, and answers.

    Half are of one house, half of many kinds as they always are.
    """
    r, usual = random.Random(seed), made(seed + 1, held_out=False)
    while True:
        n = 1 + r.randint(1, MOST_EXAMPLES)
        told = made_in_house(r, n, held_out=False) if r.random() < 0.5 else list(islice(usual, n))
        *examples, (case, code) = told
        pairs = [Pair(prompt=said, completion=shown) for said, shown in examples]
        yield primed(pairs, case, form="arrow").text, f" {code}"


def parses(code: str) -> bool:
    """Whether tags, braces, brackets and quotes of such a component close in the order they were opened."""
    waiting = list[str]()
    token = re.compile(r'"[^"\n]*"|=>|</(\w*)>|<(\w*)|/>|[>{}()\[\]]|[^"<>{}()\[\]/=]+|[/=]')
    at = 0
    while at < len(code):
        match = token.match(code, at)
        if not match:
            return False
        text, at = match[0], match.end()
        if text.startswith("</"):
            if not waiting or waiting.pop() != f"</{match[1]}>":
                return False
        elif text.startswith("<"):
            waiting += [f"</{match[2]}>", ">"]  # its end, and the end of this tag, which comes first
        elif text == "/>":
            if waiting[-1:] != [">"]:
                return False
            del waiting[-2:]
        elif text == ">":
            if not waiting or waiting.pop() != ">":
                return False
        elif text in ("{", "(", "["):
            waiting.append({"{": "}", "(": ")", "[": "]"}[text])
        elif text in ("}", ")", "]") and (not waiting or waiting.pop() != text):
            return False
    return not waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--code-only", action="store_true")
    parser.add_argument("--examples", type=float, default=0.0, metavar="SHARE", help="of the rows")
    asked = parser.parse_args()
    if asked.examples and (asked.held_out or asked.code_only):
        parser.error("--examples is for training pairs")
    r, alone = random.Random(asked.seed), made(asked.seed, held_out=asked.held_out)
    after = made_with_examples(asked.seed)
    with asked.out.open("w", encoding="utf-8") as file:
        for _ in range(asked.n):
            if r.random() < asked.examples:
                prompt, completion = next(after)
            else:
                prompt, code = next(alone)
                completion = f"\n{code}"
            row = {"text": completion.strip()} if asked.code_only else {"prompt": prompt, "completion": completion}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
