"""What the user wants: every option and its default, declared once.

Owns the frozen option records. The command line is generated from them (`localr1.cli.parse`), so an option that exists
here exists there, with this name, default and help. Knows nothing of how anything is done.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SIZE = "SIZE"
"""The metavar of an amount of memory, as `quantities.parse_size` reads it."""


def option(default: Any, help: str, *, flag: str | None = None, metavar: str | None = None, **limits: Any) -> Any:
    """A field that the command line shows as `--name`; `flag` renames it, `limits` go to the parser (min, max).

    `metavar` says what its value is, where its type does not.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "metavar": metavar, "limits": limits})


def argument(default: Any, help: str, metavar: str) -> Any:
    """A field that the command line takes by position; a tuple takes all that is left."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "argument": True})


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen; None leaves it to the model's own recommendation."""

    temperature: float | None = option(
        None, "0 takes the likeliest token; higher is more varied (default: the model's own).", min=0.0, max=5.0
    )
    top_p: float | None = option(
        None,
        "Keep the likeliest tokens that add up to this probability (default: the model's own).",
        min=0.0,
        max=1.0,
    )
    top_k: int | None = option(
        None, "Keep this many of the likeliest tokens; 0 keeps all (default: the model's own).", min=0
    )
    min_p: float | None = option(
        None,
        "Drop tokens less likely than this share of the likeliest one's probability (default: the model's own).",
        min=0.0,
        max=1.0,
    )
    seed: int | None = option(None, "Repeat the same random choices (default: others every time).", min=0)
    max_tokens: int | None = option(
        None, "Stop an answer after this many tokens, thoughts included (default: no limit).", min=1
    )


@dataclass(frozen=True)
class EngineOptions:
    """How the model is run."""

    context: int | None = option(
        None, "Most tokens a conversation may hold (default: the model's longest, at most 32768).", min=16
    )
    threads: int | None = option(None, "CPU threads (default: one a physical core).", min=1)
    vram: str | None = option(
        None, "GPU memory to use, such as 8GiB; 0 for none (default: most of what is free).", metavar=SIZE
    )
    ram: str | None = option(None, "RAM to count on, such as 24GiB (default: most of what is free).", metavar=SIZE)
    kv: Literal["auto", "bf16", "int8"] = option(
        "auto", "Cache rows of 16 or 8 bits a number; auto: int8 for latent attention on the CPU, else bf16."
    )
    dtype: Literal["int8", "float32"] = option("int8", "int8 (the 8-bit store) or float32 (slow; the reference).")
    speculate: Literal["auto", "mtp", "lookup", "off"] = option(
        "auto", "Guess tokens ahead to decode faster; the answer stays the same."
    )
    # Steps of more than 8 tokens go another way, which rounds otherwise: with more guesses the answer could change.
    draft_tokens: int | None = option(None, "Guess always this many tokens (default: as many as pays).", min=1, max=7)


@dataclass(frozen=True)
class DownloadOptions:
    """`localr1 download`."""

    model: str = argument("", "A short name, org/repo[@revision], or a folder with a checkpoint.", "MODEL")
    force: bool = option(False, "Convert again even if the model is already here.")
    quiet: bool = option(False, "No progress; errors only.")
    keep_source: bool = option(False, "Keep the downloaded 16-bit files too, in the Hugging Face cache.")
    dry_run: bool = option(False, "Say what would be fetched and how much room it needs, and fetch nothing.")
    yes: bool = option(False, "Do not ask before a large download.")
    connections: int = option(4, "Most files to fetch at a time.", min=1, max=16)
    json: bool = option(False, "Events as JSON on stdout, one object a line.", flag="--json")


@dataclass(frozen=True)
class RemoveOptions:
    """`localr1 rm`."""

    model: str = argument("", "A model that is here, whole or in part (see `localr1 models`).", "MODEL")
    yes: bool = option(False, "Do not ask.")
    partial: bool = option(False, "Only what unfinished downloads left.")
    keep_conversations: bool = option(False, "Keep the conversations in which only it answered.")


@dataclass(frozen=True)
class VerifyOptions:
    """`localr1 verify`."""

    model: str | None = argument(None, "Check this model only (default: all).", "MODEL")
    quiet: bool = option(False, "No progress; errors only.")


@dataclass(frozen=True)
class ChatOptions:
    """`localr1 chat`."""

    model: str | None = argument(
        None, "A model that is here (see `localr1 models`); default: the one used last.", "MODEL"
    )
    prompt: tuple[str, ...] = argument((), "Ask this one question and leave.", "PROMPT")
    resume: bool = option(False, "Go on with the conversation used last, or with the one whose ID follows.")
    list: bool = option(False, "List the saved conversations, or those that hold the words that follow.")
    json: bool = option(False, "Answer one question as a JSON record: answer, thoughts, statistics.")


@dataclass(frozen=True)
class ConversationOptions:
    """How a conversation is held."""

    system: str | None = option(None, "A system prompt, put before the conversation.")
    think: bool | None = option(
        None, "Whether to think before answering, where the model leaves the choice.", flag="--think/--no-think"
    )
    think_budget: int | None = option(None, "Close a thought after about this many tokens (default: no limit).", min=0)
    context_policy: Literal["stop", "slide"] = option(
        "stop", "When the context is full: stop with a message, or forget the oldest turns."
    )
    json_schema: Path | None = option(None, "Hold answers to the JSON schema in this file; thoughts stay free.")
    grammar: Path | None = option(None, "Hold answers to the Lark grammar in this file; thoughts stay free.")


@dataclass(frozen=True)
class TerminalOptions:
    """How a conversation looks, is typed, and is kept."""

    thoughts: Literal["show", "fold", "hide"] = option(
        "fold", "Show thoughts as they come and keep them, fold them to one line when they end, or hide them."
    )
    plain: bool = option(False, "Plain text without redrawing, for screen readers and logs.", flag="--plain/--no-plain")
    keys: Literal["emacs", "vi"] = option("emacs", "How the line is edited.")
    save: bool = option(
        True,
        "Save conversations on this computer as they go (default), or leave nothing behind.",
        flag="--save/--no-save",
    )


@dataclass(frozen=True)
class ConfigOptions:
    """`localr1 config`."""

    action: str = argument("show", "show, get, set or path.", "ACTION")
    words: tuple[str, ...] = argument((), "A setting's name, and its value.", "NAME VALUE")


@dataclass(frozen=True)
class DoctorOptions:
    """`localr1 doctor`."""

    fresh: bool = option(False, "Measure again.")
    threads: int | None = option(None, "CPU threads (default: one a physical core).", min=1)
    json: bool = option(False, "All of it as one JSON record.", flag="--json")


@dataclass(frozen=True)
class PlanOptions:
    """`localr1 plan`."""

    model: str | None = argument(None, "A short name, or a model that is here; default: the one used last.", "MODEL")
    json: bool = option(False, "The plan as one JSON record.", flag="--json")


@dataclass(frozen=True)
class BenchOptions:
    """`localr1 bench`."""

    words: tuple[str, ...] = argument(
        (),
        "A model that is here; default: the one used last. Or: diff A.json B.json, two files that --json wrote.",
        "MODEL",
    )
    shape: str | None = option(
        None, "Instead: random weights in the shape of this model, which need not be here.", metavar="MODEL"
    )
    layers: int | None = option(None, "Of a shape, only this many layers.", min=1)
    skew: float = option(
        0.2, "Of a shape, how uneven routes are: the r-th expert's row of the router is r^-skew long.", min=0.0, max=2.0
    )
    prompt_tokens: int = option(512, "Prefill this many tokens of real text.", min=1)
    decode_tokens: int = option(32, "Decode this many tokens.", min=1)
    depths: str = option(
        "0,1k,4k,16k", "With this many tokens already in the context, where it can hold them.", metavar="N,N,..."
    )
    repeats: int = option(5, "Measure at least this many times, in turn, and report the spread.", min=1)
    max_seconds: int = option(300, "Of speeds, begin no further measurement after this long.", min=1)
    compare: tuple[str, ...] = option(
        (), "Settings in turn: speculate, kv, threads, vram, dtype ...", metavar="KEY=A,B"
    )
    claims: bool = option(False, "Measure the four ideas against their baselines.")
    fidelity: bool = option(False, "How much the settings change what the model says.")
    replay: bool = option(
        False,
        "Instead: how often the experts that your conversations used would have been on a GPU, by policy.",
    )
    cold: bool = option(False, "Also load the model once with nothing of it in memory.")
    json: Path | None = option(None, "Write all figures, every repeat included, to this file.")
    markdown: bool = option(False, "Print the tables as Markdown.")
    csv: bool = option(False, "Print the figures as CSV, one a line.")
    plot: Path | None = option(None, "Draw speed by context, or by what is compared, into this file (.svg or .png).")
