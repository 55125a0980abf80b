"""Tokens: text to ids and back, byte for byte, from the tokenizer.json of a stranger.

The file is read and judged here, and only what was judged is handed to the Rust library, which aborts, panics or
reserves gigabytes on a hostile one. Start tokens are put in front here too, so that there are never two of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.errors import BadCheckpoint, GptcliError, Unsupported, UsageError
from gptcli.strict_json import no_garbage_collection, read_bytes, read_object

_FILE_LIMIT = 128 << 20  # bytes; gemma's tokenizer.json has 33 MB
_CONFIG_LIMIT = 16 << 20
_ID_LIMIT = 1 << 24  # where the rows of the embedding are not known
_SPACE = "\u2581"  # sentencepiece writes a space as ▁
_FLAGS = {"content": "", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_KINDS = {  # component -> (where a Sequence keeps its parts, the kinds that BPE language models use)
    "normalizer": ("normalizers", "NFC NFD NFKC NFKD Lowercase Prepend Replace Strip StripAccents"),
    "pre_tokenizer": ("pretokenizers", "ByteLevel Digits Metaspace Punctuation Split Whitespace WhitespaceSplit"),
    "post_processor": ("processors", "ByteLevel TemplateProcessing"),
    "decoder": ("decoders", "ByteFallback ByteLevel Fuse Metaspace Replace Strip"),
}
_PROBES = ("Hello, world! It's 1234 o'clock.", "\tif x:\n\n    y = [0]\r\n", "café naïve", "😀!", "漢字 текст")


class Tokenizer:
    """A vocabulary and its rules. `size` is the highest id + 1; rows of the embedding beyond it mean nothing."""

    def __init__(self, data: dict[str, Any], names: dict[str, Any], *, n_vocab: int | None, where: str) -> None:
        import tokenizers  # here: it takes 40 ms

        parts = {kind: list(_parts(data, kind, where)) for kind in _KINDS}
        self._read_decoder(parts, where)
        prefix = _prefix(parts["post_processor"], where)
        model = _model(data, where)
        added = _added_tokens(data, model["vocab"], names, where)
        ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
        _check_ids(ids, _ID_LIMIT if n_vocab is None else n_vocab, where)
        self.size: int = max(ids.values()) + 1
        self._added = frozenset(token["id"] for token in added)
        self._special = frozenset(token["id"] for token in added if token.get("special"))
        self.eos_ids: frozenset[int] = frozenset({ids[names["eos_token"]]} if names.get("eos_token") in ids else ())
        bos = ids.get(names["bos_token"]) if names.get("bos_token") is not None else None
        self._bos = prefix or (() if bos is None else (bos,))
        wanted = names.get("add_bos_token")  # where the two disagree tokenizer_config.json wins, as in transformers 5
        self._prefix = (prefix if wanted is None else self._bos) if wanted is not False else ()
        self.bos_id: int | None = self._prefix[0] if self._prefix else None
        if not all(0 <= id < self.size for id in prefix):
            raise BadCheckpoint(f"{where}: the post_processor adds {list(prefix)}, the highest id is {self.size - 1}")
        decoder = data.get("decoder") or {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
        rules = {key: data.get(key) for key in ("version", "normalizer", "pre_tokenizer")}
        rules |= dict.fromkeys(("truncation", "padding", "post_processor")) | {"decoder": decoder, "added_tokens": []}
        rules["model"] = {"type": "BPE", "vocab": {}, "merges": []}
        with guard(f"{where}: the tokenizers library cannot use it", BadCheckpoint):
            # The model is handed over by itself: as JSON it would be written and read once more, at twice the time.
            self._library = tokenizers.Tokenizer.from_str(json.dumps(rules))
            self._library.model = tokenizers.models.BPE(**model)
            self._library.add_tokens([tokenizers.AddedToken(**{f: token[f] for f in _FLAGS}) for token in added])
            for content, id in ((token["content"], token["id"]) for token in added):
                if (got := self._library.token_to_id(content)) != id:
                    raise BadCheckpoint(f"{where}: the added token {content!r} is given id {id}, but gets {got}")
        self._raws: dict[int, bytes] = {}
        self._self_test(where)

    @classmethod
    def from_folder(cls, folder: Path, *, n_vocab: int | None = None) -> Tokenizer:
        """From tokenizer.json, else vocab.json and merges.txt; `n_vocab` is the number of rows of the embedding."""
        path = folder / "tokenizer.json"
        names = _names(folder)
        with no_garbage_collection():
            if path.exists():
                return cls(read_object(path, limit=_FILE_LIMIT), names, n_vocab=n_vocab, where=path.name)
            return cls(_assemble(folder, names), names, n_vocab=n_vocab, where="vocab.json with merges.txt")

    def encode(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Ids of a text. `bos`: None as the tokenizer itself does, True one start token, False none; never two.

        Tokens which a tokenizer appends at the end are left out: a text that is to be continued is not closed. Raises
        UsageError for half a character, and for a start token where there is none.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise UsageError(f"the text holds half a character, {half} at position {error.start}") from None
        prefix = self._bos if bos else () if bos is False else self._prefix
        if bos and not prefix:
            raise UsageError("this tokenizer has no start token", hint="leave out --add-bos")
        with guard("the tokenizers library failed on this text", GptcliError):
            ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids if tuple(ids[: len(prefix)]) == prefix else [*prefix, *ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole sequence, from its first token on; special tokens are silent, bad bytes U+FFFD."""
        text = b"".join(map(self.raw, ids)).decode(errors="replace")
        return text.removeprefix(" ") if self.leading_space else text

    def raw(self, id: int) -> bytes:
        """The bytes a token stands for in the middle of a text; none for special tokens and unknown ids."""
        if id not in self._raws:
            self._raws[id] = self._spell(id)
        return self._raws[id]

    def piece(self, id: int) -> str | None:
        """The vocabulary's own spelling, `Ġthe` or `▁the`; None for ids that it does not have."""
        return self._library.id_to_token(id) if 0 <= id < self.size else None

    def is_special(self, id: int) -> bool:
        """Whether the token steers and stands for no text, like `<|endoftext|>`."""
        return id in self._special

    def id_of(self, text: str) -> int | None:
        """The one token that stands for exactly this text in the middle of a text, or that is spelled like it."""
        ids = self.encode(text, bos=False)
        raw = text.encode()
        letters = "".join(_LETTER_OF[byte] for byte in raw)
        for piece in (letters, text.replace(" ", _SPACE), *(f"<0x{byte:02X}>" for byte in raw[:1])):
            id = self._library.token_to_id(piece)
            if id is not None and self.raw(id) == raw:
                return id
        return ids[0] if len(ids) == 1 else self._library.token_to_id(text)

    def _read_decoder(self, parts: dict[str, list[dict[str, Any]]], where: str) -> None:
        """Which of the two spellings of bytes this vocabulary uses: GPT-2's letters or sentencepiece's."""
        decoders = {part["type"]: part for part in parts["decoder"]}
        kinds = list(decoders)
        self._byte_level = set(kinds) - {"Fuse"} == {"ByteLevel"}
        if not kinds:
            self._byte_level = any(part["type"] == "ByteLevel" for part in parts["pre_tokenizer"])
        self._byte_fallback = "ByteFallback" in kinds
        self.leading_space: bool = False  # whether decode() takes one space from the very start of a text
        if self._byte_level:
            return
        replace, strip = decoders.get("Replace", {}), decoders.get("Strip", {})
        spaced = decoders.get("Metaspace", {}).get("replacement", _SPACE) == _SPACE
        spaced &= not replace or (replace.get("pattern"), replace.get("content")) == ({"String": _SPACE}, " ")
        spaced &= len(kinds) == len(parts["decoder"]) and len({"Replace", "Metaspace"} & set(kinds)) == 1
        if strip:  # before Fuse it would strip every token, not the text
            spaced &= "Fuse" in kinds[: kinds.index("Strip")]
            spaced &= (strip.get("content"), strip.get("start"), strip.get("stop")) in ((" ", 0, 0), (" ", 1, 0))
        if not spaced or "ByteLevel" in kinds:
            have = " + ".join(kinds) or "none"
            raise Unsupported(f"{where}: decoder {have} is neither byte-level nor sentencepiece's")
        prepends = decoders.get("Metaspace", {"prepend_scheme": "never"}).get("prepend_scheme", "always") != "never"
        self.leading_space = prepends or strip.get("start") == 1

    def _spell(self, id: int) -> bytes:
        piece = self.piece(id)
        if piece is None or id in self._special:
            return b""
        if self._byte_level:
            if id in self._added or not all(letter in _BYTE_OF for letter in piece):
                return piece.encode()
            return bytes(_BYTE_OF[letter] for letter in piece)
        if self._byte_fallback and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(_SPACE, " ").encode()

    def _self_test(self, where: str) -> None:
        """Our bytes of each token, joined, are the library's text: it fails for a scheme that was misread."""
        for text in _PROBES:
            with guard(f"{where}: the tokenizers library failed on {text!r}", BadCheckpoint):
                ids = self._library.encode(text, add_special_tokens=False).ids
                theirs = self._library.decode(ids)
            # The library decodes an added token as if GPT-2's letters spelled it, so an added "é" comes out broken.
            ours = self.decode(ids)
            if ours != theirs and self._added.isdisjoint(ids):
                raise BadCheckpoint(f"{where}: self-test: the tokens' bytes spell {ours!r}, not {theirs!r}")


def show(raw: bytes) -> str:
    """The printable form of a token: `·the`, `⏎`, `⇥`, `⟨0xE2⟩` for bytes that are no character, `⟨U+202E⟩`."""
    text = raw.decode(errors="surrogateescape")
    n_spaces = len(text) - len(text.lstrip(" "))
    return "·" * n_spaces + "".join(map(_show_character, text[n_spaces:]))


def _show_character(character: str) -> str:
    if character in "\n\t":
        return "⏎" if character == "\n" else "⇥"
    if character.isprintable():
        return character
    code = ord(character)
    return f"⟨0x{code - 0xDC00:02X}⟩" if 0xDC80 <= code <= 0xDCFF else f"⟨U+{code:04X}⟩"


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_LETTER_OF = _byte_letters()
_BYTE_OF = {letter: byte for byte, letter in _LETTER_OF.items()}


@contextmanager
def guard(message: str, kind: type[GptcliError]) -> Iterator[None]:
    """Turns whatever the library raises into our error: a Rust panic is a BaseException, and slips past Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, GptcliError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise kind(f"{message}: {reason or type(error).__name__}") from error


def _names(folder: Path) -> dict[str, Any]:
    """Names of the special tokens, and add_bos_token; tokenizer_config.json before special_tokens_map.json."""
    names: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        found = read_object(folder / file, limit=_CONFIG_LIMIT) if (folder / file).exists() else {}
        for role in _ROLES:
            token = found.get(role)
            content = token.get("content") if isinstance(token, dict) else token
            names |= {role: content} if isinstance(content, str) else {}
        names |= {"add_bos_token": flag} if isinstance(flag := found.get("add_bos_token"), bool) else {}
    return names


def _assemble(folder: Path, names: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json for the folders of the first years: vocab.json and merges.txt, as in GPT-2 and OPT."""
    if not ((folder / "vocab.json").exists() and (folder / "merges.txt").exists()):
        hint = "transformers can write it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise BadCheckpoint(f"no tokenizer.json in {folder}, nor vocab.json with merges.txt", hint=hint)
    vocab = read_object(folder / "vocab.json", limit=_FILE_LIMIT)
    try:
        lines = read_bytes(folder / "merges.txt", limit=_FILE_LIMIT).decode().replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadCheckpoint(f"merges.txt cannot be read: {error}") from None
    added = folder / "added_tokens.json"
    more = read_object(added, limit=_CONFIG_LIMIT) if added.exists() else {}
    if not names.keys() & {"bos_token", "eos_token"} and "<|endoftext|>" in vocab:
        names |= {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}  # what GPT-2's class assumes
    special = {names.get(role) for role in _ROLES}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, "special": text in special} for text, id in more.items()],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [x for x in lines if x and not x.startswith("#version")]},
    }


def _model(data: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments of the library's BPE, without its dropout: that is for training, and random."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise BadCheckpoint(f"{where}: no model")
    kind = model.get("type", "BPE" if "merges" in model else None)  # the oldest files do not say
    if kind != "BPE":
        raise Unsupported(f"{where}: model type {kind!r}: only BPE is run")
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise Unsupported(f"{where}: pieces marked by a prefix or suffix (as in GPT-1 or CLIP)")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not (isinstance(vocab, dict) and vocab and isinstance(merges, list)):
        raise BadCheckpoint(f"{where}: the model has no vocab or no merges")
    pairs = [x.split(" ") if type(x) is str else x for x in merges]
    for at, pair in enumerate(pairs):
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise BadCheckpoint(f"{where}: merge {at} is not a pair of pieces: {str(merges[at])[:60]!r}")
    pairs = [(left, right) for left, right in pairs]
    kept = {key: model.get(key) for key in ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")}
    return {"vocab": vocab, "merges": pairs} | {key: value for key, value in kept.items() if value is not None}


def _added_tokens(data: dict[str, Any], vocab: dict[str, Any], names: dict[str, Any], where: str) -> list[Any]:
    """The file's added tokens, and the special ones that tokenizer_config.json finds in the vocabulary, by id."""
    listed = data.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise BadCheckpoint(f"{where}: added_tokens is not a list of tokens")
    added = [{**_FLAGS, **token} for token in listed]
    known = {str(token["content"]) for token in added}
    for content in sorted({names[role] for role in _ROLES if role in names} & vocab.keys() - known):
        added.append({**_FLAGS, "id": vocab[content], "content": content, "special": True})
    for token in added:
        if type(token.get("id")) is not int or not isinstance(token["content"], str):
            raise BadCheckpoint(f"{where}: an added token has no id or no content: {str(token)[:80]}")
    return sorted(added, key=lambda token: int(token["id"]))


def _check_ids(ids: dict[str, Any], limit: int, where: str) -> None:
    """Every id whole, unique, and a row of the embedding; duplicates would decode differently from run to run."""
    if not all(type(id) is int and 0 <= id < limit for id in ids.values()) or len(set(ids.values())) != len(ids):
        seen: dict[Any, str] = {}
        for piece, id in ids.items():
            if type(id) is not int or not 0 <= id < limit:
                raise BadCheckpoint(f"{where}: {piece!r} has the id {id!r}, outside the embedding's {limit} rows")
            if seen.setdefault(id, piece) != piece:
                raise BadCheckpoint(f"{where}: {seen[id]!r} and {piece!r} share the id {id}")


def _prefix(processors: list[dict[str, Any]], where: str) -> tuple[int, ...]:
    """The ids a template puts before a text."""
    prefix: list[int] = []
    try:
        for template in (part for part in processors if part["type"] == "TemplateProcessing"):
            names = [next(iter(piece.values()))["id"] for piece in template["single"]]
            text = [i for i, piece in enumerate(template["single"]) if "Sequence" in piece]
            if len(text) != 1 or names[text[0]] != "A":
                raise BadCheckpoint(f"{where}: the post_processor does not keep the text once")
            prefix[:0] = [id for name in names[: text[0]] for id in template["special_tokens"][name]["ids"]]
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise BadCheckpoint(f"{where}: the post_processor's template is malformed ({error})") from None
    if len(prefix) > 8 or not all(type(id) is int for id in prefix):
        raise BadCheckpoint(f"{where}: the post_processor's template is malformed")
    return tuple(prefix)


def _parts(data: dict[str, Any], kind: str, where: str) -> Iterator[dict[str, Any]]:
    """The components of a normalizer, decoder ... without its Sequences, each of a known type and of bounded effect."""
    inside, known = _KINDS[kind]
    waiting, n, growth = [data.get(kind)], 0, 1
    while waiting:
        part, n = waiting.pop(0), n + 1
        if part is None and n == 1:
            return
        if n > 32 or not isinstance(part, dict):
            raise BadCheckpoint(f"{where}: the {kind} is malformed or too long")
        if part.get("type") == "Sequence" and isinstance(part.get(inside), list):
            waiting[:0] = part[inside]
            continue
        if part.get("type") not in known.split():
            raise Unsupported(f"{where}: {kind} {str(part.get('type'))!r} is not run", hint="known: " + known)
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and (risk := _risk(pattern.get("Regex"))):
            raise Unsupported(f"{where}: the pattern of a {kind} {risk}: {str(pattern['Regex'])[:60]!r}")
        growth *= max(1, *(len(str(part.get(key, ""))) for key in ("content", "prepend")))
        if kind == "normalizer" and growth > 64:  # each step may replace one character by many
            raise Unsupported(f"{where}: the normalizer makes a text up to {growth} times as long")
        yield part


_REGEX = re.compile(
    r"""(?P<class>\[(?!\^?\])\^?(?:\\. | \[(?:\\. | [^\]\[\\])*\] | [^\]\[\\])*\]) | (?P<back>\\[kgK1-9])
    | (?P<escape>\\p\{[^{}]*\} | \\P\{[^{}]*\} | \\x\{[^{}]*\} | \\.) | (?P<flag>\(\?[ims]+\))
    | (?P<open>\((?:\?(?:<?[=!] | > | [ims]*(?:-[ims]+)?: | <[a-zA-Z]\w*>))?(?!\?)) | (?P<close>\)) | (?P<choice>\|)
    | (?P<repeat>[*+?][+?]? | \{(?=,?\d)(?P<low>\d*)(?P<to>,?)(?P<high>\d*)\}\??) | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)


def _risk(regex: object) -> str | None:
    """Why a regex might take forever, None if it cannot: a repeated group may hold no choice and no open repetition.

    That refuses more than what is dangerous, but nothing that the known tokenizers use: `(?:\\d{3})+` passes.
    """
    if regex is None:
        return None
    if not isinstance(regex, str) or len(regex) > 4096:
        return "is too long"
    loose = [False]  # for each open group, whether it holds something with several ways to match
    before, at = "", 0
    while at < len(regex):
        match = _REGEX.match(regex, at)
        if match is None or (match[0] in ("(", "[", "\\") and match["plain"]) or match["back"]:
            return "refers back, or has a group of an unknown kind"
        at, kind = match.end(), match.lastgroup or ""
        if kind == "open":
            loose.append(False)
        elif kind == "close":
            if len(loose) == 1:
                return "closes a group that is not open"
            kind = "loose" if loose.pop() else "group"
            loose[-1] |= kind == "loose"
        elif kind == "choice":
            loose[-1] = True
        elif kind == "repeat":
            low, high = _times(match)
            # cl100k's `\p{N}{1,3}+` cannot be tried again when nothing follows in its branch.
            closing = match[0] == "+" and len(loose) == 1 and regex[at : at + 1] in "|"
            if max(low, high or 0) > 100 or (before == "loose" and high != 1) or (before == "repeat" and not closing):
                return "repeats a repetition or a choice, or repeats too often"
            loose[-1] |= low != high or before == "group"
        before = kind
    return None


def _times(repeat: re.Match[str]) -> tuple[int, int | None]:
    """Least and most repetitions that `*`, `{2,3}` ... ask for; None for no limit."""
    if not repeat["low"] and not repeat["high"]:
        return int(repeat[0][0] == "+"), 1 if repeat[0][0] == "?" else None
    low = int(repeat["low"] or 0)
    return low, int(repeat["high"]) if repeat["high"] else None if repeat["to"] else low
