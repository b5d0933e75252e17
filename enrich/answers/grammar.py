"""The grammar of the second pass: well-formed answers whose category is in the taxonomy.

It is defined once, as automata over tokens. vLLM gets them as an EBNF grammar in a structural tag of xgrammar, and
transformers calls `answer_grammar`, which follows them, so that installations without vLLM need no xgrammar (and triton
with it). In EBNF and with sets of permitted tokens xgrammar 0.2.8 is exact; its JSON forms with `exclude_token` inside
"or" or "repeat" permit every token.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from enrich.answers.automata import Part, line
from enrich.answers.token_evidence import AnswerTokens

SHORTEST_TEXT = 40  # minimum of tokens allowed for a text; the tutorial's longest title has 71 characters, about 25


def answer_structure(tokens: AnswerTokens) -> dict[str, Any]:
    """The permitted answers, token by token, as a structural tag.

    A grammar over characters would leave the choice of tokens to the model, and a label spelled with unusual tokens has
    a different probability.
    """
    sets: dict[frozenset[int], str] = {}
    rules: list[str] = []
    parts = answer_parts(tokens)
    for number, part in enumerate(parts):
        rules += _rules(f"p{number}", part, sets)
    root = f"root ::= {' '.join(f'p{number}' for number in range(len(parts)))}"
    grammar = "\n".join([root, *rules, *_definitions(sets), ""])
    return {"type": "structural_tag", "format": {"type": "grammar", "grammar": grammar}}


def answer_grammar(tokens: AnswerTokens, stops: Collection[int] = ()) -> Callable[[Sequence[int]], list[int]]:
    """A function from the tokens written so far to those that may come next.

    Args:
        stops: other tokens than the turn's end that may end an answer. vLLM permits all of a request's stop tokens, and
            a token's probability is relative to the permitted ones.
    """
    parts = answer_parts(tokens)
    done = (len(parts), 0, 0)

    def with_next(places: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
        """Places (part, state, tokens of the part so far), and where they are if their parts end."""
        every, waiting = set(places), list(places)
        while waiting:
            number, state, _ = waiting.pop()
            if number < len(parts) and state in parts[number].ends and (after := (number + 1, 0, 0)) not in every:
                every.add(after)
                waiting.append(after)
        return every

    def edges(places: set[tuple[int, int, int]]) -> Iterator[tuple[frozenset[int], tuple[int, int, int]]]:
        for number, state, count in places:
            if number == len(parts):
                continue
            part = parts[number]
            if part.most is None or count < part.most or state not in part.ends:
                for permitted, after in part.edges.get(state, ()):
                    yield permitted, (number, after, count + 1)

    def allowed(written: Sequence[int]) -> list[int]:
        places = with_next({(0, 0, 0)})
        for token in written:
            places = with_next({after for permitted, after in edges(places) if token in permitted})
        following: set[int] = set().union(*(permitted for permitted, _ in edges(places)))
        return list(following | {tokens.stop, *stops} if done in places else following)

    return allowed


def answer_parts(tokens: AnswerTokens) -> list[Part]:
    """The parts of an answer in order: for each field the text before its value, the value, and the newline."""
    most = text_room(tokens)
    parts: list[Part] = []
    for field in tokens.prompt.fields:
        parts += field.how.parts(tokens, field, most)
        if field != tokens.prompt.fields[-1] and not field.how.closed:
            parts.append(line((tokens.newline,)))
    return parts


def text_room(tokens: AnswerTokens) -> int:
    """Tokens that a text may take: what the longest rest of the answer leaves, but at least SHORTEST_TEXT.

    So a text that runs on is cut, and the answer is whole within its budget, unless there are several such texts.
    """
    fields = tokens.prompt.fields
    rest = 1 + len(fields) + sum(field.how.room(tokens, field) for field in fields)  # the closing token, newlines
    return max(SHORTEST_TEXT, tokens.prompt.max_new_tokens - rest)


def _rules(name: str, part: Part, sets: dict[frozenset[int], str]) -> Iterator[str]:
    """The part's rules in EBNF, one for each state with several ways on. `sets` names sets of tokens."""
    bound = f"[max_tokens={part.most}]" if part.most else ""
    yield f"{name}{bound} ::= {name}s0"
    waiting, seen = [0], {0}
    while waiting:
        state = waiting.pop()
        ways = ['""'] if state in part.ends else []
        for permitted, after in part.edges.get(state, ()):
            way = [_named(permitted, sets)]
            while after not in part.ends and len(part.edges[after]) == 1 and part.most is None:
                [(permitted, after)] = part.edges[after]
                way.append(_named(permitted, sets))
            if part.edges.get(after):
                way.append(f"{name}s{after}")
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
            ways.append(" ".join(way))
        yield f"{name}s{state} ::= {' | '.join(ways)}"


def _definitions(sets: Mapping[frozenset[int], str]) -> Iterator[str]:
    """Rules for the named sets. Tokens that are in the same sets are listed once: vLLM parses this for each request."""
    names: dict[int, list[str]] = defaultdict(list)
    for permitted, name in sets.items():
        for token in permitted:
            names[token].append(name)
    shared: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for token in sorted(names):
        shared[tuple(names[token])].append(token)
    members: dict[str, list[str]] = defaultdict(list)
    for number, (owners, tokens) in enumerate(shared.items()):
        yield f"m{number} ::= Token({', '.join(map(str, tokens))})"
        for name in owners:
            members[name].append(f"m{number}")
    yield from (f"{name} ::= {' | '.join(found)}" for name, found in members.items())


def _named(permitted: frozenset[int], sets: dict[frozenset[int], str]) -> str:
    return f"Token({next(iter(permitted))})" if len(permitted) == 1 else sets.setdefault(permitted, f"k{len(sets)}")
