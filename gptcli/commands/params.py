"""gptcli params: where the numbers of a decoder are, matrix by matrix. No torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.given import refuse_given
from gptcli.errors import UsageError
from gptcli.render import theme
from gptcli.render.output import Output, say
from gptcli.settings import settle

if TYPE_CHECKING:
    from gptcli.params import Account, Recount


def params(
    ctx: typer.Context,
    what: o.SizeOrModel = None,
    model_option: o.Model = None,
    layer: Annotated[
        int | None, typer.Option("--layer", metavar="N", help="Every matrix of one layer, counted from 0.")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="GPT-3's eight sizes as the paper prints them, and counted again.")
    ] = False,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context", metavar="N", min=1, help="Show the cache of N tokens too; repeatable.", show_default=False
        ),
    ] = None,
    attention: o.Attention = None,
    window: o.Window = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, every matrix included.")] = False,
    color: o.PlainColor = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:
    """Show where the numbers of a decoder are: matrix by matrix and layer by layer, and the memory that they take.

    SIZE is one of GPT-3's (gpt3 is the 175B one; gpt3-125m to gpt3-13b), GPT-2's (gpt2, gpt2-medium, gpt2-large,
    gpt2-xl) or of `gptcli train`; a config.json or a checkpoint does as well, and is held against its own files.
    """
    from gptcli.catalogue import read_pattern
    from gptcli.params import account, recount, subject

    if what is not None and model_option is not None:
        raise UsageError("the model is given twice, as an argument and with --model", hint="leave one out")
    settings = settle({"model": model_option, "color": color})
    output = Output()
    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    if table:
        if what or model_option or layer is not None:
            raise UsageError("--table is about GPT-3's eight sizes, and takes no other")
        refuse_given(
            ctx, ("context", "attention", "window", "revision", "allow_config"), "--table is about GPT-3's eight sizes"
        )
        found = recount()
        if as_json:
            output.json([_row_json(each) for each in found])
            return
        from gptcli.render.params import draw_table

        output.write(theme.drawn(draw_table(found), colour=coloured))
        return
    if what is None:
        from gptcli.model_choice import chosen_model

        what = chosen_model(settings)
    counted = account(
        subject(
            what,
            pattern=read_pattern(attention) if attention else None,
            window=window,
            revision=revision,
            allow=allow_config or (),
        ),
        contexts=context or (),
    )
    if layer is not None:
        counted.of_layer(layer)
    for n in context or ():
        if n > counted.config.n_ctx:
            say(f"gptcli: note: this model's context is {counted.config.n_ctx:,} tokens; a cache of {n:,} is not shown")
    if as_json:
        output.json(_json(counted, layer))
        return
    from gptcli.render.params import draw, draw_layer

    picture = draw(counted) if layer is None else draw_layer(counted, layer)
    output.write(theme.drawn(picture, colour=coloured))


def _json(a: Account, layer: int | None) -> dict[str, Any]:
    matrices = a.matrices if layer is None else a.of_layer(layer)
    answer: dict[str, Any] = {
        "name": a.title,
        "n_params": a.n_params,
        "n_layer": a.config.n_layer,
        "layer_params": a.n_in_layer,
        "d_model": a.config.d_model,
        "n_head": a.config.n_head,
        "n_ctx": a.config.n_ctx,
        "n_vocab": a.config.n_vocab,
        "windows": [each.window for each in a.config.layers],
        "weight_bytes": dict(a.memory),
        "cache_float16": [{"tokens": k.n_tokens, "bytes": k.kept, "bytes_without_windows": k.dense} for k in a.caches],
        "checks": [{**dataclasses.asdict(check), "holds": check.holds} for check in a.checks],
        "matrices": [{"name": m.name, "does": m.does, "shape": m.shape, "n_params": m.n} for m in matrices],
        "notes": list(a.notes),
    }
    return answer | ({"printed_params": a.row.params} if a.row else {})


def _row_json(each: Recount) -> dict[str, Any]:
    from gptcli.params import proof

    row, size = each.row, each.row.corrected
    return {
        "name": row.label,
        "printed": {name: getattr(row, name) for name in dataclasses.asdict(row) if name not in ("size", "label")},
        "corrected": {"n_layer": size.n_layer, "d_model": size.d_model, "n_head": size.n_head},
        "typo": row.typo,
        "proof": proof(row) or None,
        "n_params": each.params,
        "params_off": each.params_off,
        "flops": each.flops,
        "flops_off": each.flops_off,
    }
