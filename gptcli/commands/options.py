"""Every option's name, aliases and help, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptcli.errors import UsageError

SAMPLING, TEXT, OUTPUT, MODEL = "Sampling", "Text in", "Output", "Model"

# What other tools call the same: accepted, and left out of the help.
ALIASES = {
    "temp": "temperature",
    "max-new-tokens": "max-tokens",
    "n-predict": "max-tokens",
    "repeat-penalty": "repetition-penalty",
}

Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", metavar="MODEL", rich_help_panel=MODEL, show_default=False,
        help="A folder, a .safetensors file, a shard index, or a name in the Hugging Face cache.",
    ),
]  # fmt: skip
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter", metavar="DIR", rich_help_panel=MODEL, show_default=False,
        help="A LoRA adapter as PEFT writes them, or the name of one that comes with gptcli.",
    ),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", rich_help_panel=MODEL, help="Branch, tag or commit in the cache."),
]
AllowConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-config", metavar="KEY", rich_help_panel=MODEL, help="Accept a config.json key not understood."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", rich_help_panel=MODEL, help="auto, cpu, cuda, cuda:N or mps.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="NAME", rich_help_panel=MODEL, help="auto, float32, bfloat16 or float16."),
]

Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="BITS", rich_help_panel=MODEL, help="Round the weights: int8, int4 or none."),
]

Text = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", show_default=False, help="Text to go on from; - for stdin.")
]
WholeText = Annotated[
    str | None, typer.Argument(metavar="[TEXT]", show_default=False, help="The text, as it is; - for stdin.")
]
PromptFlag = Annotated[
    str | None, typer.Option("-p", "--prompt", metavar="TEXT", rich_help_panel=TEXT, help="The prompt, as an option.")
]
File = Annotated[
    str | None,
    typer.Option("-f", "--file", metavar="PATH", rich_help_panel=TEXT, help="Read the text from a file; - for stdin."),
]
StdinLast = Annotated[
    bool, typer.Option("--stdin-last", rich_help_panel=TEXT, help="Put piped text after the argument, not before it.")
]
KeepNewline = Annotated[
    bool, typer.Option("--keep-newline", rich_help_panel=TEXT, help="Keep the last newline of piped text and files.")
]
Escape = Annotated[
    bool,
    typer.Option(
        "-e/ ", "--escape/--no-escape", rich_help_panel=TEXT, help=r"Read \n, \t, \\ and \uXXXX in the prompt."
    ),
]
Bos = Annotated[
    bool | None,
    typer.Option(
        "--add-bos/--no-bos",
        rich_help_panel=TEXT,
        show_default=False,
        help="Force or forbid the start token; by default as the tokenizer does.",
    ),
]

MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-tokens", metavar="N", rich_help_panel=SAMPLING,
        help="At most N tokens; -1 for as many as the context holds. [128]",
    ),
]  # fmt: skip
Temperature = Annotated[
    float | None,
    typer.Option("-t", "--temperature", metavar="T", rich_help_panel=SAMPLING, help="0 takes the best token. [0.8]"),
]
TopK = Annotated[
    int | None,
    typer.Option("-k", "--top-k", metavar="K", rich_help_panel=SAMPLING, help="Draw from the K best; 0 is off. [40]"),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        rich_help_panel=SAMPLING,
        help="Draw from the fewest best that hold P together; 1 is off. [0.95]",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", rich_help_panel=SAMPLING, help="Drop those below P times the best; 0 is off. [0]"
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", metavar="X", rich_help_panel=SAMPLING,
        help="Weaken tokens that are in the text already; 1 is off. [1]",
    ),
]  # fmt: skip
RepeatLastN = Annotated[
    int | None,
    typer.Option(
        "--repeat-last-n", metavar="N", rich_help_panel=SAMPLING, help="How far back that looks; -1: everything. [-1]"
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", metavar="X", rich_help_panel=SAMPLING,
        help="Subtract X from the logit of every token generated so far. [0]",
    ),
]  # fmt: skip
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty", metavar="X", rich_help_panel=SAMPLING,
        help="Subtract X for each time the token was generated. [0]",
    ),
]  # fmt: skip
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias", metavar="ID=±B", rich_help_panel=SAMPLING, help='Add B to a token: 50256=-inf, " the"=2.'
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "-s", "--seed", metavar="N", rich_help_panel=SAMPLING, help="Same seed, same text. \\[random, reported]"
    ),
]
XraySeed = Annotated[
    int | None, typer.Option("-s", "--seed", metavar="N", rich_help_panel=SAMPLING, help="Same seed, same text. \\[0]")
]
NumSamples = Annotated[
    int | None,
    typer.Option(
        "--num-samples", metavar="N", rich_help_panel=SAMPLING, help="N texts; number i has seed + i, as alone. [1]"
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", rich_help_panel=SAMPLING, help="End before this text; repeatable."),
]
IgnoreEos = Annotated[
    bool | None,
    typer.Option("--ignore-eos", rich_help_panel=SAMPLING, show_default=False, help="Go on after the end token."),
]
Overflow = Annotated[
    str | None,
    typer.Option(
        "--overflow", metavar="HOW", rich_help_panel=SAMPLING,
        help="Text beyond the context: error, truncate (drop the oldest), slide (and go on for ever). \\[error]",
    ),
]  # fmt: skip

Lookup = Annotated[
    bool,
    typer.Option(
        "--lookup",
        rich_help_panel=MODEL,
        help="Look ahead where the text repeats itself: the same text, sooner when it quotes its prompt.",
    ),
]

Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="N",
        rich_help_panel=OUTPUT,
        help="N best candidates of each token, in JSON, where p is after temperature and filters, and logprob the "
        "model's own; colours text.",
    ),
]
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="One JSON object.")]
Jsonl = Annotated[
    bool, typer.Option("--jsonl", rich_help_panel=OUTPUT, help="One JSON object for each token, as it comes.")
]
Echo = Annotated[bool, typer.Option("--echo", rich_help_panel=OUTPUT, help="Print the prompt too.")]
Stream = Annotated[
    bool, typer.Option("--stream/--no-stream", rich_help_panel=OUTPUT, help="Show text as it comes, or at the end.")
]
Stats = Annotated[
    bool | None,
    typer.Option("--stats", rich_help_panel=OUTPUT, show_default=False, help="Times and memory, on stderr."),
]
Quiet = Annotated[
    bool | None,
    typer.Option("-q", "--quiet", rich_help_panel=OUTPUT, show_default=False, help="Nothing on stderr but errors."),
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", rich_help_panel=OUTPUT, help="Every setting in force and its source.")
]
Color = Annotated[
    str | None,
    typer.Option(
        "--color", metavar="WHEN", rich_help_panel=OUTPUT,
        help="auto, always, never, or prob: each token tinted by its probability. \\[auto]",
    ),
]  # fmt: skip

PlainColor = Annotated[
    str | None,
    typer.Option("--color", metavar="WHEN", rich_help_panel=OUTPUT, help="auto, always or never. \\[auto]"),
]

Xray = Annotated[
    bool,
    typer.Option("--xray", rich_help_panel=OUTPUT, help="A strip beside each token: how it formed, layer by layer."),
]

WHAT_IF = "What if"
Ablate = Annotated[
    list[str] | None,
    typer.Option(
        "--ablate", metavar="PLACE", rich_help_panel=WHAT_IF, show_default=False,
        help="Switch off a head (L9H4), an MLP (L7.mlp), an attention (L7.attn) or a layer (L3). L9H4:7/2 only keeps "
        "token 7 from attending to token 2; the other tokens share its weight, or with =0 do not; -1 is the prompt's "
        "last token. Repeatable.",
    ),
]  # fmt: skip
Patch = Annotated[
    list[str] | None,
    typer.Option(
        "--patch", metavar="TEXT@PLACE:N", rich_help_panel=WHAT_IF, show_default=False,
        help="At token N, put in what another prompt has there: 'The dog'@L5:-1, the last token of each prompt. "
        "Repeatable.",
    ),
]  # fmt: skip
Mean = Annotated[
    bool,
    typer.Option(
        "--mean",
        rich_help_panel=WHAT_IF,
        help="Switched off is the mean over the prompt without its first token, and not zero.",
    ),
]


def tokens_of(text: str | None) -> int | None:
    """20M, 300k, 1.5B or 5000 as a number. Raises UsageError."""
    if text is None:
        return None
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    try:
        n = round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        n = 0
    if n < 1:
        raise UsageError(f"--tokens must be a count like 5000, 300k, 20M or 1.5B, not {text!r}")
    return n


Out = Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the model goes.")]

SizeOrModel = Annotated[
    str | None,
    typer.Argument(metavar="[SIZE|CONFIG|DIR]", show_default=False, help="gpt3, gpt2 ..., a config.json, or a model."),
]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attention", metavar="PATTERN", show_default=False,
        help="Kinds of layers in turn: dense-banded, banded-dense, dense ... Which of them GPT-3 has first was never "
        "published. \\[dense-banded, as GPT-Neo]",
    ),
]  # fmt: skip
Window = Annotated[
    int | None,
    typer.Option(
        "--window", metavar="N", min=1, show_default=False,
        help="Tokens that a banded layer sees, itself included. GPT-3's own was never published. \\[256, as GPT-Neo]",
    ),
]  # fmt: skip

PRIMING = "Priming"
Examples = Annotated[
    list[str] | None,
    typer.Option(
        "--examples", metavar="FILE", rich_help_panel=PRIMING,
        help="Examples of a task before the prompt: .jsonl (prompt and completion, or description and code), or .tsv.",
    ),
]  # fmt: skip
Example = Annotated[
    list[str] | None,
    typer.Option("--example", metavar="TEXT", rich_help_panel=PRIMING, help='One example, as "in => out"; repeatable.'),
]
ExampleFormat = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", rich_help_panel=PRIMING, show_default=False,
        help="How examples are written: arrow (in => out), equals (in = out), qa (Q: and A:), plain. \\[arrow]",
    ),
]  # fmt: skip
ShowPrompt = Annotated[
    bool, typer.Option("--show-prompt", rich_help_panel=PRIMING, help="Print the whole prompt, and generate nothing.")
]
