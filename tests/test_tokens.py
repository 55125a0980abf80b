from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gptcli.errors import BadCheckpoint, GptcliError, Unsupported, UsageError
from gptcli.text_stream import TextStream
from gptcli.tokens import Tokenizer, guard, show

SHARED = Path(__file__).parents[2] / "shared"
CORPUS = ["the cat sat on the mat, and the other cat sat there too", "don't\n\tcount 1234 cats", "caf\u00e9 na\u00efve"]
TEXTS = [
    "",
    "the cat",
    "  two  spaces ",
    "a\n\tb\r\n",
    "caf\u00e9 \U0001f600\u200d \u6f22\u5b57 \u0301",
    "don't <b> 12345",
    "\u2581_\u0120",
]


def byte_level(*, specials: list[str] | None = None, start: bool = False) -> dict[str, Any]:
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = specials if specials is not None else ["<|end|>", "<s>"]
    tok.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=names, show_progress=False),
    )
    if start:
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return as_dict(tok)


def sentencepiece() -> dict[str, Any]:
    """Like Llama's: a space is prepended, unknown characters fall back to bytes."""
    tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Characters beyond ASCII are left to the bytes; a newline is too, as in Llama.
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [line.encode("ascii", "ignore").decode().replace("\n", "").replace("\t", "") for line in CORPUS]
    tok.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=330, special_tokens=names, show_progress=False))
    data = as_dict(tok)
    data["added_tokens"] = data["added_tokens"][:3]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return data


def gemma_like() -> dict[str, Any]:
    """Spaces are replaced but none is prepended, and nothing is stripped."""
    data = sentencepiece()
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    data["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    data["decoder"]["decoders"].pop()
    return data


def metaspace() -> dict[str, Any]:
    """Like newer Llama files: the space is prepended by the pre-tokenizer."""
    data = sentencepiece()
    data["normalizer"] = None
    data["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    return data


def as_dict(tok: tokenizers.Tokenizer) -> dict[str, Any]:
    found = json.loads(tok.to_str())
    assert isinstance(found, dict)
    return found


def added(id: int, content: str, *, special: bool = False) -> dict[str, Any]:
    return {"id": id, "content": content, "special": special}


def load(
    folder: Path, data: dict[str, Any], config: dict[str, Any] | None = None, n_vocab: int | None = None
) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return Tokenizer.from_folder(folder, n_vocab=n_vocab)


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "byte_level": byte_level,
    "byte_level_start": lambda: byte_level(start=True),
    "no_specials": lambda: byte_level(specials=[]),
    "sentencepiece": sentencepiece,
    "gemma_like": gemma_like,
    "metaspace": metaspace,
}


def check_against_library(tokenizer: Tokenizer, library: tokenizers.Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = tokenizer.encode(text, bos=False)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == library.encode(text).ids
        assert tokenizer.decode(ids) == library.decode(ids) == text
        whole = b"".join(map(tokenizer.raw, ids)).decode()
        assert whole == (" " + text if tokenizer.leading_space and text else text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_library_s(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    texts = TEXTS
    if "\u2581" in json.dumps(data["decoder"], ensure_ascii=False):  # sentencepiece cannot tell U+2581 from a space
        texts = [text.replace("\u2581", "") for text in TEXTS]
    if kind == "metaspace":  # puts no space before a space, but takes one away
        texts = [text.lstrip(" ") for text in texts]
    check_against_library(load(tmp_path, data), library, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_gives_what_decode_gives(kind: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, KINDS[kind]())
    rng = random.Random(0)
    for _ in range(100):
        ids = [rng.randrange(tokenizer.size) for _ in range(20)]
        stream = TextStream(strip_leading_space=tokenizer.leading_space)
        chunks = [chunk for at, id in enumerate(ids) for chunk in stream.feed(at, tokenizer.raw(id))]
        assert "".join(chunk.text for chunk in (*chunks, *stream.finish())) == tokenizer.decode(ids)


def test_raw_is_what_a_token_means_inside_a_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    llama, gpt2 = load(tmp_path / "a", sentencepiece()), load(tmp_path / "b", byte_level())
    assert llama.raw(llama.encode("the")[1]) == gpt2.raw(gpt2.encode(" the")[0]) == b" the"
    assert llama.leading_space and not gpt2.leading_space
    assert [llama.raw(id) for id in llama.encode("\u00e9")[-2:]] == [b"\xc3", b"\xa9"]
    assert llama.piece(llama.encode("the")[1]) == "\u2581the"
    assert gpt2.piece(gpt2.encode(" the")[0]) == "\u0120the"


def test_special_and_unknown_ids_have_no_bytes(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level())
    assert tokenizer.is_special(0) and tokenizer.piece(0) == "<|end|>" and tokenizer.raw(0) == b""
    assert not tokenizer.is_special(5)
    for id in (tokenizer.size, 10**12, -1):
        assert (tokenizer.raw(id), tokenizer.piece(id), tokenizer.is_special(id)) == (b"", None, False)
    assert tokenizer.decode([*tokenizer.encode("a"), 0, tokenizer.size, *tokenizer.encode("b")]) == "ab"


def test_added_tokens_mean_their_own_text(tmp_path: Path) -> None:
    data = byte_level()
    n = len(data["model"]["vocab"])
    data["added_tokens"] += [added(n, "    "), added(n + 1, "\u00f1\u0120"), added(n + 2, "<tool>", special=True)]
    tokenizer = load(tmp_path, data)
    assert tokenizer.size == n + 3
    ids = tokenizer.encode("a    b\u00f1\u0120<tool>")
    assert {n, n + 1, n + 2} <= set(ids)
    assert tokenizer.decode(ids) == "a    b\u00f1\u0120"


def test_added_tokens_of_gemma_s_kind_are_read_as_it_decodes_them(tmp_path: Path) -> None:
    data = gemma_like()
    n = len(data["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"] += [flags | added(n, "\u2581\u2581"), flags | added(n + 1, "\n\n")]
    tokenizer, library = load(tmp_path, data), tokenizers.Tokenizer.from_str(json.dumps(data))
    ids = tokenizer.encode("the\n\ncat", bos=False)
    assert n + 1 in ids and tokenizer.raw(n) == b"  "
    assert tokenizer.decode([*ids, n]) == library.decode([*ids, n]) == "the\n\ncat  "


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece", "metaspace"])
def test_any_ids_decode_as_the_library_does_unless_they_are_no_text(kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    tokenizer, library = load(tmp_path, data), tokenizers.Tokenizer.from_str(json.dumps(data))
    rng, n_same = random.Random(1), 0
    for _ in range(500):
        ids = [rng.randrange(tokenizer.size) for _ in range(rng.randint(1, 4))]
        # Of a run of byte tokens that is not UTF-8 the library spoils every character, we only the bad ones.
        if "\ufffd" not in library.decode(ids):
            assert tokenizer.decode(ids) == library.decode(ids)
            n_same += 1
    assert n_same > 50


def test_padding_rows_do_not_count(tmp_path: Path) -> None:
    data = byte_level()
    assert load(tmp_path, data, n_vocab=100_000).size == len(data["model"]["vocab"])


# -- start and end tokens


def test_no_start_token_unless_asked(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(), {"bos_token": "<s>", "eos_token": {"content": "<|end|>"}})
    assert tokenizer.bos_id is None and tokenizer.eos_ids == {0}
    plain = tokenizer.encode("the cat")
    assert tokenizer.encode("the cat", bos=False) == plain
    assert tokenizer.encode("the cat", bos=True) == [1, *plain]
    assert tokenizer.encode("", bos=True) == [1] and tokenizer.encode("") == []


@pytest.mark.parametrize("make", [lambda: byte_level(start=True), sentencepiece])
def test_the_tokenizer_s_own_start_token_comes_once(make: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    tokenizer = load(tmp_path, make(), {"bos_token": "<s>", "add_bos_token": True})
    assert tokenizer.bos_id == 1
    plain = tokenizer.encode("the cat", bos=False)
    assert plain[0] != 1
    assert tokenizer.encode("the cat") == tokenizer.encode("the cat", bos=True) == [1, *plain]
    assert tokenizer.encode("<s>the cat").count(1) == tokenizer.encode("<s>the cat", bos=True).count(1) == 1


def test_add_bos_token_is_enough_and_false_is_obeyed(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(), {"bos_token": "<s>", "add_bos_token": True})
    assert tokenizer.bos_id == 1 and tokenizer.encode("a")[0] == 1
    tokenizer = load(tmp_path, byte_level(start=True), {"bos_token": "<s>", "add_bos_token": False})
    assert tokenizer.bos_id is None and tokenizer.encode("a")[0] != 1 and tokenizer.encode("a", bos=True)[0] == 1


def test_a_start_token_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(), {"bos_token": "<none>", "eos_token": "<none>"})
    assert tokenizer.eos_ids == frozenset() and tokenizer.bos_id is None
    with pytest.raises(UsageError, match="no start token"):
        tokenizer.encode("a", bos=True)


def test_tokens_at_the_end_are_left_out(tmp_path: Path) -> None:
    data = byte_level(start=True)
    data["post_processor"]["single"].append({"SpecialToken": {"id": "<s>", "type_id": 0}})
    assert load(tmp_path, data).encode("a").count(1) == 1


def test_special_names_of_the_config_are_special(tmp_path: Path) -> None:
    data = byte_level()
    data["added_tokens"] = []
    tokenizer = load(tmp_path, data, {"eos_token": "<|end|>"})
    assert tokenizer.is_special(0) and tokenizer.eos_ids == {0} and tokenizer.encode("a<|end|>")[-1] == 0


@pytest.mark.parametrize("names", [None, {"eos_token": "<|end|>"}])
def test_a_name_that_is_not_given_is_not_the_word_none(names: dict[str, Any] | None, tmp_path: Path) -> None:
    data = byte_level()
    data["model"]["vocab"]["None"] = len(data["model"]["vocab"])
    tokenizer = load(tmp_path, data, names)
    for text in ("None", "NoneType", "a None b"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and not any(map(tokenizer.is_special, ids))


def test_special_tokens_map_is_read_when_the_config_is_silent(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}, "bos_token": "<|end|>"}')
    tokenizer = load(tmp_path, byte_level(), {"bos_token": "<s>"})
    assert tokenizer.eos_ids == {0} and tokenizer.encode("", bos=True) == [1]


# -- one token from the command line


def test_id_of_a_text(tmp_path: Path) -> None:
    for name, data in (("a", byte_level()), ("b", sentencepiece())):
        (tmp_path / name).mkdir()
        tokenizer = load(tmp_path / name, data)
        for text in (" the", "a", "\n", "<s>"):
            id = tokenizer.id_of(text)
            assert id is not None
            assert tokenizer.raw(id) == text.encode() or tokenizer.piece(id) == text
        piece = tokenizer.piece(tokenizer.encode("a the")[-1])
        assert piece is not None and tokenizer.id_of(piece) == tokenizer.encode("a the")[-1]
        assert tokenizer.id_of("two words") is None and tokenizer.id_of("") is None


# -- printable forms


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"the", "the"),
        (b" the", "\u00b7the"),
        (b"   ", "\u00b7\u00b7\u00b7"),
        (b"a b", "a b"),
        (b"\n\n", "\u23ce\u23ce"),
        (b"\tx", "\u21e5x"),
        (b"\xe2", "\u27e80xE2\u27e9"),
        (b" \xf0\x9f", "\u00b7\u27e80xF0\u27e9\u27e80x9F\u27e9"),
        ("\u00e9\u6f22\U0001f600".encode(), "\u00e9\u6f22\U0001f600"),
        (b"\x1b[31m", "\u27e8U+001B\u27e9[31m"),
        ("\u202e".encode(), "\u27e8U+202E\u27e9"),
        ("\u200b\ufeff\u2028\x85".encode(), "\u27e8U+200B\u27e9\u27e8U+FEFF\u27e9\u27e8U+2028\u27e9\u27e8U+0085\u27e9"),
        (b"\r", "\u27e8U+000D\u27e9"),
        (b"", ""),
    ],
)
def test_show(raw: bytes, shown: str) -> None:
    assert show(raw) == shown


def test_show_never_prints_a_control() -> None:
    for byte in range(256):
        assert show(bytes([byte])).isprintable()


# -- files of strangers


def edit(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = data
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return data


SPLIT = {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False}


def nested(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [part]}]}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Precompiled"}]}, "Precompiled"),
        ("pre_tokenizer", nested({"type": "BertPreTokenizer"}), "BertPreTokenizer"),
        ("post_processor", {"type": "RobertaProcessing"}, "RobertaProcessing"),
        ("decoder", {"type": "WordPiece"}, "WordPiece"),
        ("decoder", {"type": "Fuse"}, "neither byte-level"),
        ("model.type", "Unigram", "Unigram"),
        ("model.end_of_word_suffix", "</w>", "suffix"),
        ("model.continuing_subword_prefix", "##", "prefix"),
        ("pre_tokenizer", nested({**SPLIT, "pattern": {"Regex": "(a+)+$"}}), "repeats"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "(?:a|aa)+$"}}, "repeats"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "((a{90}){90}){90}"}}, "repeats"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": r"(?<x>a\g<x>?b)"}}, "refers back"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "(?x)a#(\n"}}, "unknown kind"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "a" * 5000}}, "too long"),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}, "times as long"),
    ],
)
def test_what_is_not_known_is_unsupported_by_name(path: str, value: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=why):
        load(tmp_path, edit(byte_level(), path, value))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("model", None, "no model"),
        ("model.vocab", {}, "no vocab"),
        ("model.vocab.the", 0, "share the id 0"),
        ("model.vocab.the", 90_000, "'the' has the id 90000"),
        ("model.vocab.the", -1, "'the' has the id -1"),
        ("model.vocab.the", 1.0, "'the' has the id 1.0"),
        ("model.vocab.the", True, "'the' has the id True"),
        ("model.merges", ["t h", "th"], "merge 1 "),
        ("model.merges", [["t", "h", "e"]], "merge 0 "),
        ("model.merges", [["t", 1]], "merge 0 "),
        ("model.merges", [["t", "nowhere"]], "cannot use it"),
        ("added_tokens", [{"id": 900, "content": "<x>"}], "'<x>' is given id 900, but gets"),
        ("added_tokens", [{"id": 5, "content": "<x>"}], "share the id 5"),
        ("added_tokens", [{"content": "<x>"}], "no id"),
        ("added_tokens", 5, "not a list"),
        ("post_processor.special_tokens", {}, "template is malformed"),
        ("post_processor.special_tokens", {"<s>": {"ids": [99_999]}}, "99999"),
        ("post_processor.single", [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}], "the text once"),
        ("post_processor.single", [], "the text once"),
        ("normalizer", 5, "malformed"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}, "too long"),
        ("pre_tokenizer", {**SPLIT, "pattern": {"Regex": "("}}, "cannot use it"),
        ("decoder", None, "ok"),
    ],
)
def test_what_is_malformed_is_refused_by_name(path: str, value: Any, why: str, tmp_path: Path) -> None:
    data = edit(byte_level(start=True), path, value)
    if why == "ok":  # so that this test would notice if everything were refused
        load(tmp_path, data, n_vocab=1000)
        return
    with pytest.raises(BadCheckpoint, match=why) as caught:
        load(tmp_path, data, n_vocab=1000)
    assert "\n" not in caught.value.message


REAL_PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # gpt2
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+",  # llama3
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}]+[\r\n/]*|\s+",  # o200k
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s",  # cl100k
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+""",  # deepseek
    r" ?[^(\s|[.,!?\u2026\u3002\uff0c\u3001])]+",  # bloom
    r"(?<=\d)(?=(?:\d{3})+(?!\d))",  # digits in threes from the right
    r"[\p{Han}]+|[\p{Ll}&&[^\p{Han}]]+",  # kimi
]


@pytest.mark.parametrize("regex", REAL_PATTERNS)
def test_patterns_of_real_tokenizers_pass(regex: str, tmp_path: Path) -> None:
    data = byte_level()
    parts = [{**SPLIT, "pattern": {"Regex": regex}}, {**data["pre_tokenizer"], "use_regex": False}]
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    check_against_library(load(tmp_path, data), tokenizers.Tokenizer.from_str(json.dumps(data)), TEXTS)


def test_what_would_change_texts_in_silence_is_switched_off(tmp_path: Path) -> None:
    data = byte_level()
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    data["model"]["dropout"] = 0.9
    tokenizer = load(tmp_path, data)
    ids = tokenizer.encode("the cat sat on the mat")
    assert 2 < len(ids) < 20 and tokenizer.decode(ids) == "the cat sat on the mat"
    assert all(tokenizer.encode("the cat sat on the mat") == ids for _ in range(20))


def test_the_oldest_files_name_no_model_type_and_no_decoder(tmp_path: Path) -> None:
    data = byte_level()
    del data["model"]["type"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["decoder"] = None
    assert load(tmp_path, data).decode(load(tmp_path, data).encode("the cat \u6f22")) == "the cat \u6f22"


def test_a_lossy_normalizer_is_no_fault(tmp_path: Path) -> None:
    data = byte_level()
    data["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    tokenizer = load(tmp_path, data)
    assert tokenizer.decode(tokenizer.encode("The CAT")) == "the cat"


def test_the_self_test_notices_bytes_that_are_not_what_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "_spell", lambda self, id: b"?")
    with pytest.raises(BadCheckpoint, match="self-test"):
        load(tmp_path, byte_level())


def test_half_a_character_in_the_text_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"U\+D83D at position 2"):
        load(tmp_path, byte_level()).encode("ab\ud83d")


def test_the_guard_lets_only_the_python_exits_through() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(GptcliError, match="here: no entry found"), guard("here", GptcliError):
        raise PanicException("no entry\nfound")
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind), guard("here", GptcliError):
            raise kind


@pytest.mark.parametrize("seed", range(150))
def test_a_damaged_file_is_refused_or_works(seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    data = rng.choice([byte_level(start=True), sentencepiece()]) if seed % 2 else sentencepiece()
    junk: list[Any] = [
        None,
        0,
        -1,
        2**40,
        1.5,
        "",
        "\u2581",
        "ByteLevel",
        "Sequence",
        [],
        {},
        [[]],
        {"String": ""},
        True,
    ]
    place: Any = data
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not (isinstance(place[key], dict | list) and place[key]) or rng.random() < 0.2:
            break
        place = place[key]
    place[key] = rng.choice(junk)
    try:
        tokenizer = load(tmp_path, data, {"bos_token": "<s>"}, n_vocab=600)
        tokenizer.decode(tokenizer.encode("the cat \U0001f600\n"))
    except GptcliError:
        pass
    assert capfd.readouterr().err == ""  # a panic would have printed itself


# -- folders without a tokenizer.json


def old_folder(folder: Path, more: dict[str, Any], vocab: dict[str, int] | None = None) -> Path:
    data = byte_level(specials=[])
    pieces = data["model"]["vocab"]
    shift = len(vocab or {})
    (folder / "vocab.json").write_text(json.dumps((vocab or {}) | {k: v + shift for k, v in pieces.items()}))
    merges = "\n".join(" ".join(pair) for pair in data["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    for name, content in more.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_gpt2_s_first_files(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(old_folder(tmp_path, {}, {"<|endoftext|>": 0}))
    assert tokenizer.eos_ids == {0} and tokenizer.bos_id is None and tokenizer.is_special(0)
    assert tokenizer.encode("the cat<|endoftext|>")[-1] == 0
    assert tokenizer.decode(tokenizer.encode("the cat \u6f22\n")) == "the cat \u6f22\n"
    assert tokenizer.piece(tokenizer.encode("a the")[-1]) == "\u0120the"


def test_merges_of_windows_are_those_of_unix(tmp_path: Path) -> None:
    ids = Tokenizer.from_folder(old_folder(tmp_path, {})).encode("the cat sat\r\n")
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.from_folder(tmp_path).encode("the cat sat\r\n") == ids
    merges.write_bytes(b"t h\nthe\n")
    with pytest.raises(BadCheckpoint, match=r"merges\.txt: merge 1 is not a pair"):
        Tokenizer.from_folder(tmp_path)


def test_merges_that_are_a_pipe_or_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merges = old_folder(tmp_path, {}) / "merges.txt"
    monkeypatch.setattr("gptcli.tokens._FILE_LIMIT", (tmp_path / "vocab.json").stat().st_size)
    merges.write_text("t h\n" * 10_000)
    with pytest.raises(BadCheckpoint, match=r"merges\.txt has 40,000 bytes, more than"):
        Tokenizer.from_folder(tmp_path)
    merges.unlink()
    os.mkfifo(merges)
    with pytest.raises(BadCheckpoint, match=r"merges\.txt is not a regular file"):
        Tokenizer.from_folder(tmp_path)


def test_opt_s_files(tmp_path: Path) -> None:
    config = {"add_bos_token": True, "bos_token": {"content": "</s>"}, "eos_token": {"content": "</s>"}}
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    tokenizer = Tokenizer.from_folder(old_folder(tmp_path, {"tokenizer_config.json": config}, vocab))
    assert tokenizer.bos_id == 2 and tokenizer.eos_ids == {2}
    assert tokenizer.encode("a")[0] == 2 and tokenizer.encode("", bos=True) == [2]
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def test_added_tokens_json(tmp_path: Path) -> None:
    n = len(byte_level(specials=[])["model"]["vocab"])
    tokenizer = Tokenizer.from_folder(
        old_folder(
            tmp_path, {"added_tokens.json": {"<x>": n + 1, "    ": n}, "special_tokens_map.json": {"eos_token": "<x>"}}
        )
    )
    assert tokenizer.size == n + 2 and tokenizer.eos_ids == {n + 1}
    assert tokenizer.raw(n) == b"    " and tokenizer.is_special(n + 1)


def test_a_folder_without_any_of_them(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json") as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.hint
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(BadCheckpoint, match=r"merges\.txt"):
        Tokenizer.from_folder(tmp_path)


def test_importing_is_light() -> None:
    code = "import sys, gptcli.tokens; print([m for m in ('tokenizers', 'torch', 'rich') if m in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- real files, where they are at hand


def real(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs {name} beside the repository, in ../shared")
    return path


@pytest.mark.parametrize(
    ("name", "size", "bos", "eos", "leading"),
    [
        ("tokenizers/gpt2", 50257, None, 50256, False),
        ("models/stories260K", 512, 1, 2, True),
        ("models/stories15M", 32000, 1, 2, True),
    ],
)
def test_real_tokenizers(name: str, size: int, bos: int | None, eos: int, leading: bool) -> None:
    folder = real(name)
    tokenizer = Tokenizer.from_folder(folder, n_vocab=size)
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_ids) == (size, bos, frozenset({eos}))
    assert tokenizer.leading_space is leading
    texts = [*(text for text in TEXTS if "\u2581" not in text), "def f() -> None:", "NoneType"]
    check_against_library(tokenizer, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), texts)
    first, second = tokenizer.encode("Once upon", bos=False)
    assert (tokenizer.raw(first), tokenizer.raw(second)) == (b" Once" if leading else b"Once", b" upon")
    with pytest.raises(BadCheckpoint, match=f"id {size - 1}, outside"):
        Tokenizer.from_folder(folder, n_vocab=size - 1)
