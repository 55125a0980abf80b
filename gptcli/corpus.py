"""Texts to train on: read from files, cut into documents, and written down once as token ids.

    tokens.bin    every document's ids, each followed by the end token; one end token in front of the first
    tokens.json   how they are stored, where the validation part begins, which tokenizer and which texts they are of

No torch here; data.py maps the file and cuts batches out of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import BadCheckpoint, GptcliError, NotFound, UsageError
from gptcli.strict_json import os_errors, read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

END = "<|endoftext|>"
ENOUGH = 100_000_000  # characters to learn a vocabulary from; more change it little


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What tokens.json says: ids [0, n_train) are for training, [n_train, n) for validation."""

    n: int
    n_train: int
    n_documents: int
    n_bytes: int  # of text, in UTF-8
    bytes_per_id: int  # 2 or 4
    tokenizer: str  # sha256 of its file


def find(names: Sequence[str], *, held_out: Sequence[str] = ()) -> list[str]:
    """The files of a corpus, each once: a folder stands for the .txt and .jsonl files in it, - for stdin.

    held_out: files for validation, which are left out of a folder. Raises NotFound, and UsageError for one of them that
    is named here too.
    """
    if names.count("-") > 1:
        raise UsageError("stdin (-) is given twice")
    apart = {Path(name).resolve() for name in held_out}
    files, missing = dict[Path, str](), list[str]()
    for name in names:
        path = Path(name)
        if name == "-":
            files[path] = name
        elif path.is_file():
            if path.resolve() in apart:
                raise UsageError(f"{name} is given to train on and to validate on", hint="leave one of the two out")
            files.setdefault(path.resolve(), name)
        elif path.is_dir():
            for file in _inside(path, apart):
                files.setdefault(file.resolve(), str(file))
        else:
            missing.append(name)
    if missing:
        n = len(names) - len(missing)
        raise NotFound(
            f"{'these files are' if len(missing) > 1 else 'this file is'} not there: {', '.join(missing)}",
            hint=f"{n} of {len(names)} given were found" if n else "",
        )
    return list(files.values())


def _inside(folder: Path, apart: Set[Path]) -> list[Path]:
    """The texts in a folder, but for those that are held out."""
    texts = sorted(p for p in folder.iterdir() if p.suffix in (".txt", ".jsonl") and p.is_file())
    if not texts:
        raise NotFound(f"there is no .txt or .jsonl file in {folder}")
    rest = [p for p in texts if p.resolve() not in apart]
    if not rest:
        raise UsageError(f"all texts in {folder} are held out for validation, and none is left to train on")
    return rest


def find_held_out(names: Sequence[str]) -> list[str]:
    """The files of a validation text. Raises NotFound, UsageError for stdin: it is kept for what is trained on."""
    if "-" in names:
        raise UsageError("the validation text cannot come from stdin", hint="give a file with --validation")
    return find(names)


def documents(files: Iterable[str]) -> Iterator[str]:
    """Every document: a line's "text" in .jsonl, the parts between `<|endoftext|>` elsewhere; no empty ones."""
    for name in files:
        read = _jsonl(name) if name.endswith(".jsonl") else _text(name).split(END)
        yield from filter(None, (document.strip("\r\n ") for document in read))


def keep_stdin(files: Sequence[str], folder: Path, field: str = "text") -> list[str]:
    """The same files, with what comes from standard input written down: a corpus is read more than once.

    It is taken for .jsonl if its first line is an object that has a "text", or the field of that name.
    """
    if "-" not in files:
        return list(files)
    kept = folder / "stdin.txt"
    if sys.stdin is None:
        raise UsageError("standard input is closed", hint="name a file")
    with kept.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    try:
        if {"text", field} & {*next(rows(str(kept)), (0, {}))[1]}:
            kept = kept.rename(kept.with_suffix(".jsonl"))
    except GptcliError:  # its first line is no object
        pass
    return [str(kept) if name == "-" else name for name in files]


def _text(name: str) -> str:
    try:
        return Path(name).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error, 0) from None
    except OSError as error:
        raise GptcliError(f"{name}: cannot be read: {error.strerror or error}") from None


def _not_utf8(name: str, error: UnicodeDecodeError, offset: int) -> GptcliError:
    return GptcliError(
        f"{name}: byte 0x{error.object[error.start]:02X} at offset {offset + error.start} is not UTF-8",
        hint="convert it: iconv -f latin1 -t utf-8",
    )


def _jsonl(name: str) -> Iterator[str]:
    for number, row in rows(name):
        text = row.get("text")
        if not isinstance(text, str):
            raise GptcliError(f'{name}: line {number}: there is no "text"')
        yield text


def rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a .jsonl file that is not empty. Raises GptcliError with the line."""
    offset = 0
    try:
        with Path(name).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(name, number, line, offset)
                offset += len(line)
    except OSError as error:
        raise GptcliError(f"{name}: cannot be read: {error.strerror or error}") from None


def _object(name: str, number: int, line: bytes, offset: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error, offset) from None
    except UnicodeEncodeError:
        raise GptcliError(f"{name}: line {number}: half a character (a lone surrogate)") from None
    except (ValueError, RecursionError) as error:
        raise GptcliError(f"{name}: line {number}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise GptcliError(f"{name}: line {number}: not a JSON object")
    return row


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Library:
    """A byte-level BPE of GPT-2's kind: the end token, 256 bytes, and the commonest merges. Deterministic."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if n_vocab < 257:
        raise UsageError(f"a byte-level vocabulary has 257 tokens or more, not {n_vocab}")
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(_first(texts, ENOUGH), trainer)
    return library


def _first(texts: Iterable[str], n_characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        n_characters -= len(text)
        if n_characters <= 0:
            return


def read_tokenizer(path: Path) -> Library:
    """A tokenizer.json, or the one in a folder, judged as strangers' are. Raises BadCheckpoint, NotFound."""
    from tokenizers import Tokenizer as Library

    from gptcli.tokens import Tokenizer, guard

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"there is no tokenizer at {path}")
    Tokenizer(read_object(file, limit=128 << 20), {}, n_vocab=None, where=file.name)
    with guard(f"{file.name}: the tokenizers library cannot use it", BadCheckpoint):
        library = Library.from_file(str(file))
        _plainly(library)
        _alone(library)
    if library.token_to_id(END) is None:
        library.add_special_tokens([END])  # under an id that is the number of tokens
        if len({*library.get_vocab().values()}) < library.get_vocab_size():
            raise BadCheckpoint(f"{file.name}: {END} is missing and cannot be added: the ids have a hole")
    return library


def n_ids(library: Library) -> int:
    """The highest id + 1: the rows that an embedding needs. A vocabulary with a hole has fewer tokens than that."""
    return max(library.get_vocab().values()) + 1


def end_of(library: Library) -> int:
    """The id of the end token. Raises BadCheckpoint for a tokenizer without one."""
    found = library.token_to_id(END)
    if found is None:
        raise BadCheckpoint(f"the tokenizer has no {END}")
    return found


def write_tokenizer(library: Library, folder: Path, n_ctx: int) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers reads them."""
    library.save(str(folder / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def write_tokens(
    texts: Iterable[str],
    validation: Iterable[str],
    folder: Path,
    *,
    encode: Callable[[list[str]], list[list[int]]],
    n_vocab: int,
    end_id: int,
    share: float,
    tokenizer: str = "",
    held_out: bool = False,
) -> Tokens:
    """Encodes everything, batch by batch. `validation`: texts of its own; else the last `share` of the ids.

    A validation part cut off the end starts at a document's border where one is near. held_out: there are texts for
    validation. Raises GptcliError when there is nothing in what is given.
    """
    width = 2 if n_vocab <= 1 << 16 else 4
    starts, n_bytes, n, n_own = list[int](), 0, 1, 1
    temporary = folder / "tokens.bin.tmp"
    with temporary.open("wb") as file:
        file.write(_packed([end_id], width))
        for kind, part in (("train", texts), ("validation", validation)):
            n_own = n
            waiting = iter(part)
            while batch := list(islice(waiting, 512)):
                for text, ids in zip(batch, encode(batch), strict=True):
                    starts.extend([n] if kind == "train" else ())
                    file.write(_packed([*ids, end_id], width))
                    n += len(ids) + 1
                    n_bytes += len(text.encode())
            if not starts:
                raise GptcliError("the corpus is empty", hint='text files, or .jsonl files with a "text" in each line')
    if held_out and n_own == n:
        raise GptcliError("the validation texts are empty")
    n_train = n_own if n_own < n else _border(starts, n, share)
    temporary.replace(folder / "tokens.bin")
    tokens = Tokens(
        n=n, n_train=n_train, n_documents=len(starts), n_bytes=n_bytes, bytes_per_id=width, tokenizer=tokenizer
    )
    (folder / "tokens.json").write_text(json.dumps(asdict(tokens), indent=2) + "\n", encoding="utf-8")
    return tokens


def read_tokens(folder: Path) -> Tokens:
    """What a run's tokens.json says. Raises NotFound, and BadCheckpoint that names what is not as we write it."""
    values = read_object(folder / "tokens.json")
    found = {(name, type(value).__name__) for name, value in values.items()}
    wrong = sorted(name for name, _ in found ^ {(field.name, field.type) for field in fields(Tokens)})
    if wrong:
        raise BadCheckpoint(f"{folder / 'tokens.json'} is damaged: {wrong[0]!r}", hint="start again in a new folder")
    return Tokens(**values)


def _border(starts: Sequence[int], n: int, share: float) -> int:
    """Where the last `share` of n ids begins: at the nearest start of a document, unless that is far off.

    Far is more than half of the share: a short last document would be all there is, or a long one most of the text.
    """
    aim = n - int(n * share)
    nearest = min(starts[1:], key=lambda start: abs(start - aim), default=aim)
    return nearest if 2 * abs(nearest - aim) <= n - aim else aim


def _plainly(library: Library) -> None:
    """Texts as they are: nothing cut off, nothing filled up, no merges left out by chance."""
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None) is not None:
        library.model.dropout = None


def _alone(library: Library) -> None:
    """Nothing is put in front of a text or behind it: such tokens are not trained on."""
    values = json.loads(library.to_str())
    if values.get("post_processor") and values["post_processor"].get("type") != "ByteLevel":
        from tokenizers import processors

        library.post_processor = processors.Sequence([])


def encoder(tokenizer: Path) -> tuple[Callable[[list[str]], list[list[int]]], str]:
    """The function that turns texts into ids, many at a time, and the sha256 of the tokenizer's file."""
    from tokenizers import Tokenizer

    from gptcli.tokens import guard

    library = Tokenizer.from_file(str(tokenizer))
    _plainly(library)

    def encode(texts: list[str]) -> list[list[int]]:
        with guard("the tokenizers library failed on this text", GptcliError):
            return [e.ids for e in library.encode_batch_fast(texts, add_special_tokens=False)]

    return encode, hashlib.sha256(tokenizer.read_bytes()).hexdigest()


def check_length(tokens: Tokens, n_ctx: int) -> None:
    """Raises UsageError for a text that does not fill one context."""
    if tokens.n_train <= n_ctx:
        n = tokens.n_train - 1
        raise UsageError(
            f"the text has {n} tokens to predict, fewer than one context of {n_ctx}",
            hint=f"give more text, or --context {max(1, n)}",
        )


def check_tokenizer(tokens: Tokens, tokenizer: Path) -> None:
    """Raises BadCheckpoint if the tokenizer is not the one that the tokens were made with, NotFound if it is gone."""
    with os_errors(str(tokenizer)):
        found = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    if found != tokens.tokenizer:
        raise BadCheckpoint(f"{tokenizer} is not the tokenizer that tokens.bin was made with", hint="start again")


def _packed(ids: Sequence[int], width: int) -> bytes:
    packed = array("H" if width == 2 else "I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
