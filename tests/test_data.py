"""Batches: whole windows, none across the border to validation, each a function of (seed, step) alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_tokens import byte_level, gemma_like, metaspace, sentencepiece
from test_tokens import load as load_tokenizer

from gptcli.corpus import Tokens, documents, find, read_tokenizer, read_tokens, write_tokens
from gptcli.data import IGNORED, Encoded, Pairs, Windows, encode_pairs, padded
from gptcli.errors import BadCheckpoint, GptcliError, NotFound, UsageError
from gptcli.pairs import Pair, are_pairs, read_pairs
from gptcli.tokens import Tokenizer

N_CTX = 8


def written(folder: Path, n: int = 1000, validation: list[str] | None = None, share: float = 0.1) -> Tokens:
    """Ten documents whose ids count upwards, so that an id says where it stands."""
    texts = [",".join(str(i * 100 + j + 1) for j in range(n // 10 - 1)) for i in range(10)]
    return write_tokens(
        texts, validation or [], folder, encode=lambda part: [[int(i) for i in t.split(",")] for t in part],
        n_vocab=5000, end_id=0, share=share,
    )  # fmt: skip


def test_an_epoch_shows_every_window_once_and_the_next_one_otherwise(tmp_path: Path) -> None:
    windows = Windows(tmp_path, written(tmp_path), n_ctx=N_CTX, seed=1)
    n = windows.n_windows
    first = [windows.start_of(i) for i in range(n)]
    second = [windows.start_of(n + i) for i in range(n)]
    assert len(set(first)) == n and len({start % N_CTX for start in first}) == 1
    assert sorted(first) == list(range(min(first), max(first) + 1, N_CTX)) and first != sorted(first)
    assert first != second


def test_labels_are_the_next_ids_and_no_window_reaches_validation(tmp_path: Path) -> None:
    tokens = written(tmp_path)
    windows = Windows(tmp_path, tokens, n_ctx=N_CTX, seed=1)
    ids = torch.from_file(str(tmp_path / "tokens.bin"), size=tokens.n, dtype=torch.uint16).long()
    assert ids[0] == 0 and ids[tokens.n_train - 1] == 0, "validation begins at a document's border"
    for i in range(3 * windows.n_windows):
        start = windows.start_of(i)
        assert start + N_CTX + 1 <= tokens.n_train
        batch = windows.train(i, i + 1)
        assert batch.ids[0].tolist() == ids[start : start + N_CTX].tolist()
        assert batch.labels[0].tolist() == ids[start + 1 : start + N_CTX + 1].tolist()
    seen = {int(id) for batch in windows.validation() for id in batch.labels.flatten()}
    trained = {int(id) for i in range(windows.n_windows) for id in windows.train(i, i + 1).labels.flatten()}
    assert seen and seen & trained <= {0}


def test_batches_depend_on_the_seed_and_the_place_alone(tmp_path: Path) -> None:
    tokens = written(tmp_path)
    one, again, other = (Windows(tmp_path, tokens, n_ctx=N_CTX, seed=s) for s in (7, 7, 8))
    far = 5 * one.n_windows + 3
    assert torch.equal(one.train(far, far + 4).ids, again.train(far, far + 4).ids)
    assert not torch.equal(one.train(far, far + 4).ids, other.train(far, far + 4).ids)


def test_validation_texts_of_their_own_are_all_validation(tmp_path: Path) -> None:
    tokens = written(tmp_path, validation=["9001,9002,9003"])
    assert tokens.n - tokens.n_train == 4
    (batch,) = Windows(tmp_path, tokens, n_ctx=N_CTX, seed=0).validation()
    assert batch.ids.tolist() == [[9001, 9002, 9003]] and batch.labels.tolist() == [[9002, 9003, 0]]


def test_a_text_shorter_than_a_context_is_refused_with_the_way_out(tmp_path: Path) -> None:
    tokens = written(tmp_path, n=50, share=0.0)
    with pytest.raises(UsageError, match="fewer than one context of 64") as caught:
        Windows(tmp_path, tokens, n_ctx=64, seed=0)
    assert "--context" in caught.value.hint


def test_a_damaged_token_file_is_refused(tmp_path: Path) -> None:
    tokens = written(tmp_path)
    with (tmp_path / "tokens.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(BadCheckpoint, match="damaged"):
        Windows(tmp_path, tokens, n_ctx=N_CTX, seed=0)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"more": 1}, "more"), ({"n": "1000"}, "n"), ({"n_train": None}, "n_train"), ({"bytes_per_id": True}, "bytes")],
)
def test_of_a_damaged_tokens_json_the_key_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    tokens, file = written(tmp_path), tmp_path / "tokens.json"
    assert read_tokens(tmp_path) == tokens
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadCheckpoint, match=f"tokens.json is damaged: '{named}"):
        read_tokens(tmp_path)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_documents_come_from_text_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\n\n<|endoftext|>two\r\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "vier ü", "more": 1}\n')
    (tmp_path / "c.md").write_text("not taken from a folder")
    assert list(documents(find([str(tmp_path)]))) == ["one", "two", "three", "vier ü"]


def test_a_file_counts_once_however_often_it_is_given(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    a, b = str(tmp_path / "a.txt"), str(tmp_path / "b.txt")
    assert find([a, str(tmp_path), f"{tmp_path}/../{tmp_path.name}/b.txt"]) == [a, b]
    with pytest.raises(UsageError, match=r"stdin \(-\) is given twice"):
        find(["-", "-"])


def test_what_is_held_out_is_taken_out_of_a_folder_and_refused_by_name(tmp_path: Path) -> None:
    a, b = (str(tmp_path / f"{name}.txt") for name in "ab")
    for name in (a, b):
        Path(name).write_text("text")
    assert find([str(tmp_path)], held_out=[b]) == [a]
    with pytest.raises(UsageError, match=r"b\.txt is given to train on and to validate on"):
        find([a, b], held_out=[b])
    with pytest.raises(UsageError, match="all texts in .* are held out for validation"):
        find([str(tmp_path)], held_out=[a, b])


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([400, 400, 100, 100], 100),  # a border where it should be
        ([400, 400, 120, 80], 80),  # near it, whichever side it is on
        ([400, 490, 110], 110),
        ([500, 499, 1], 100),  # a tiny last document would be all there is
        ([300, 700], 100),  # and a long one most of the text
        ([1000], 100),
    ],
)
def test_validation_begins_at_the_nearest_border_unless_that_is_far_off(
    lengths: list[int], expected: int, tmp_path: Path
) -> None:
    tokens = write_tokens(
        [str(n - 1) for n in lengths], [], tmp_path, encode=lambda part: [[1] * int(n) for n in part],
        n_vocab=9, end_id=0, share=0.1,
    )  # fmt: skip
    assert tokens.n == 1001 and tokens.n - tokens.n_train == expected


def test_an_end_token_that_would_take_another_token_s_id_is_refused(tmp_path: Path) -> None:
    """The library gives it the number of tokens as its id; where ids have a hole that may be taken."""
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["added_tokens"] = []
    del values["model"]["vocab"][tiny.END]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))  # ids from 1 on
    with pytest.raises(BadCheckpoint, match="cannot be added: the ids have a hole"):
        read_tokenizer(tmp_path)


def test_what_is_missing_is_named_among_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(NotFound, match=r"this file is not there: .*gone\.txt") as caught:
        find([str(tmp_path / "a.txt"), str(tmp_path / "gone.txt"), str(tmp_path)])
    assert caught.value.hint == "2 of 3 given were found"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"text": "fine"}\n{"text": 3}\n', 'line 2: there is no "text"'),
        (b'{"text": "fine"}\n\n[1]\n', "line 3: not a JSON object"),
        (b'{"text": "fine"\n', "line 1: not JSON"),
        (b'{"text": "\\ud800"}\n', "line 1: half a character"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "byte 0xFF at offset 24 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(GptcliError, match=complaint):
        list(documents([str(tmp_path / "a.jsonl")]))


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GptcliError, match="the corpus is empty"):
        write_tokens([], [], tmp_path, encode=lambda part: [], n_vocab=9, end_id=0, share=0.1)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_only_completions_and_the_end_are_learned() -> None:
    batch = padded([Encoded(ids=(5, 6, 7, 8, 0), n_prompt=3), Encoded(ids=(5, 9, 0), n_prompt=1)])
    assert batch.ids.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 8, 0], [9, 0, IGNORED, IGNORED]]


def test_pairs_are_encoded_as_generate_meets_them(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    pairs = [Pair(prompt="the hell", completion=" on"), Pair(prompt="", completion="x")]
    one, empty = encode_pairs(pairs, tokenizer, end_id=0, start_id=0)
    assert one.ids == (*tokenizer.encode("the hell"), *tokenizer.encode(" on"), 0)
    assert one.n_prompt == len(tokenizer.encode("the hell"))
    assert empty.ids == (0, *tokenizer.encode("x"), 0) and empty.n_prompt == 1


def with_a_space_first() -> dict[str, Any]:
    data = byte_level()
    data["pre_tokenizer"]["add_prefix_space"] = True
    return data


@pytest.mark.parametrize("make", [sentencepiece, metaspace, gemma_like, byte_level, with_a_space_first])
@pytest.mark.parametrize("completion", ["cat sat", " cat sat", "\n\nthe end", "12 cats", "  two", "é"])
def test_a_completion_is_spelled_as_it_is_in_the_data(
    make: Callable[[], dict[str, Any]], completion: str, tmp_path: Path
) -> None:
    """A tokenizer that puts a space before every text must not teach a model to write it there."""
    tokenizer = load_tokenizer(tmp_path, make())
    (row,) = encode_pairs([Pair(prompt="the dog", completion=completion)], tokenizer, end_id=2, start_id=1)
    assert b"".join(map(tokenizer.raw, row.ids[row.n_prompt : -1])).decode() == completion
    assert list(row.ids[: row.n_prompt]) == tokenizer.encode("the dog")


def test_a_completion_of_no_prompt_is_a_text_of_its_own(tmp_path: Path) -> None:
    """`generate` without a prompt takes the tokenizer's own space away again."""
    tokenizer = load_tokenizer(tmp_path, sentencepiece())
    (row,) = encode_pairs([Pair(prompt="", completion=" cat")], tokenizer, end_id=2, start_id=1)
    assert row.ids[: row.n_prompt] == (1,) and tokenizer.decode(row.ids[1:-1]) == " cat"


def test_an_epoch_shows_every_pair_once() -> None:
    rows = [Encoded(ids=(i, 100 + i, 0), n_prompt=1) for i in range(20)]
    pairs = Pairs(rows, rows[:3], seed=4)
    first, second = (sorted(pairs.train(a, a + 20).ids[:, 0].tolist()) for a in (0, 20))
    assert first == second == list(range(20))
    assert pairs.train(0, 20).ids.tolist() != pairs.train(20, 40).ids.tolist()
    assert [len(batch.ids) for batch in pairs.validation()] == [3]


def test_a_pair_without_a_completion_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(GptcliError, match=r'pairs\.jsonl: line 2: there is no "completion"'):
        read_pairs([str(file)])
    file.write_text('{"description": "a", "code": "b"}\n')
    assert read_pairs([str(file)], ("description", "code")) == [Pair(prompt="a", completion="b")]


def test_the_first_line_tells_pairs_from_texts(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert not are_pairs(str(tmp_path / "t.jsonl")) and are_pairs(str(tmp_path / "p.jsonl"))
    assert not are_pairs("story.txt")


def test_a_tokenizer_that_pads_cuts_or_drops_gives_the_texts_as_they_are(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    from gptcli.corpus import encoder

    library = Library.from_file(str(Path(__file__).parent.parent / "weights" / "tokenizer.json"))
    library.save(str(tmp_path / "plain.json"))
    library.enable_padding(length=64)
    library.enable_truncation(3)
    library.model.dropout = 0.5
    library.save(str(tmp_path / "odd.json"))
    texts = ["Once upon a time there was a little robot.", "It was red."]
    plain, odd = (encoder(tmp_path / name)[0] for name in ("plain.json", "odd.json"))
    assert [odd(texts) for _ in range(3)] == [plain(texts)] * 3
    assert len(plain(texts)[1]) < 8


def test_a_large_seed_is_a_seed_too() -> None:
    rows = [Encoded(ids=(1, 2, 3), n_prompt=1) for _ in range(4)]
    assert len(Pairs(rows, (), seed=99_999_999_999_999_999).train(0, 4).ids) == 4
