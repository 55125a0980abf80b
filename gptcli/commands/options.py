"""Every option's name, aliases and help, written once."""

from __future__ import annotations

from typing import Annotated

import typer

SAMPLING, TEXT, OUTPUT, MODEL = "Sampling", "Text in", "Output", "Model"

# What other tools call the same: accepted, and left out of the help.
ALIASES = {
    "--temp": "--temperature",
    "--max-new-tokens": "--max-tokens",
    "--n-predict": "--max-tokens",
    "--repeat-penalty": "--repetition-penalty",
}

# Options that the environment and the config file know too; see settings.py.
SETTINGS = frozenset(
    (
        *("model", "device", "dtype", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "num_samples"),
        *("repetition_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty", "color", "overflow", "stop"),
        *("ignore_eos", "stats", "quiet"),
    )
)

Model = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", metavar="MODEL", rich_help_panel=MODEL, show_default=False,
        help="A folder, a .safetensors file, a shard index, or a name in the Hugging Face cache.",
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

Text = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", show_default=False, help="Text to go on from; - for stdin.")
]
PromptFlag = Annotated[
    str | None, typer.Option("-p", "--prompt", metavar="TEXT", rich_help_panel=TEXT, help="The prompt, as an option.")
]
File = Annotated[
    str | None,
    typer.Option(
        "-f", "--file", metavar="PATH", rich_help_panel=TEXT, help="Read the prompt from a file; - for stdin."
    ),
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
        help="Start token or none; else as the tokenizer does.",
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
        help="Draw from the best that hold P together; 1 is off. [0.95]",
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
        "--repeat-last-n", metavar="N", rich_help_panel=SAMPLING, help="How far back it looks; -1: everything. [-1]"
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty", metavar="X", rich_help_panel=SAMPLING, help="Off the logit of each token generated. [0]"
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty", metavar="X", rich_help_panel=SAMPLING, help="The same, for each time it was. [0]"
    ),
]
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

Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="N",
        rich_help_panel=OUTPUT,
        help="N best candidates of each token, in JSON; colours text.",
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
