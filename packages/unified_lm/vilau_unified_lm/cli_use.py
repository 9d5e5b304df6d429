"""The verbs of `vilau` that use a finished run or a checkpoint; they take ordinary options, checked before anything is
imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vilau_common.errors import UserError
from vilau_unified_lm import cli_checks as check

USE_MODULE = "vilau_unified_lm.use"
REPORT_MODULE = "vilau_common.report"
GUIDANCE_MODULE = "vilau_unified_lm.evaluation.guidance"
APP_MODULE = "vilau_unified_lm.app.serve"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, such as runs/demo.")]
RunOrOfficial = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A finished run, or a checkpoint of the official VILA-U code."),
]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help="Where the model goes: cuda, auto (wherever there is room); the CPU by itself."),
]
Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")]
NewDirectory = Annotated[Path, typer.Argument(metavar="OUT", help="A directory that does not exist yet.")]
AS_TRAINED = "; by itself as the run was evaluated"

app = typer.Typer()
convert = typer.Typer(help="Convert checkpoints from and to the official VILA-U code.", no_args_is_help=True)


def _use(module: str, function: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@app.command()
def ask(
    run: RunOrOfficial,
    image: Image,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In plain words.")],
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Answer a question about a picture."""
    check.require_run(run)
    check.require_picture(image)
    check.require_dtype(dtype)
    check.require_device_map(device_map)
    answer = _use(USE_MODULE, "ask")
    typer.echo(answer(run=run, image=image, question=question, dtype=dtype, device_map=device_map))


@app.command()
def draw(
    run: RunOrOfficial,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw, in plain words.")],
    output: Output = Path("out.png"),
    negative: Annotated[str, typer.Option(help="What the picture should not show; see --guidance.")] = "",
    count: Annotated[int, typer.Option(help="How many pictures to draw.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help=f"How far to go from the blank or negative prompt{AS_TRAINED}.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help=f"0 takes the likeliest code{AS_TRAINED}.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Draw from the k likeliest codes{AS_TRAINED}.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help=f"Draw from the likeliest codes of that total probability{AS_TRAINED}."),
    ] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Draw what a prompt says."""
    check.require_run(run)
    check.require_writable_picture(output)
    check.require_at_least("--count", count, 1)
    check.require_at_least("--seed", seed, 0)
    check.require_at_least("--guidance", guidance, 0)
    check.require_at_least("--temperature", temperature, 0)
    check.require_at_least("--top-k", top_k, 1)
    check.require_share("--top-p", top_p)
    check.require_dtype(dtype)
    check.require_device_map(device_map)
    written = _use(USE_MODULE, "draw")(
        run=run,
        prompt=prompt,
        negative=negative,
        output=output,
        count=count,
        seed=seed,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        dtype=dtype,
        device_map=device_map,
    )
    for path in written:
        typer.echo(path)


@app.command()
def reconstruct(
    run: RunOrOfficial,
    image: Image,
    output: Output = Path("out.png"),
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Turn a picture into codes and back."""
    check.require_run(run)
    check.require_picture(image)
    check.require_writable_picture(output)
    check.require_dtype(dtype)
    check.require_device_map(device_map)
    back = _use(USE_MODULE, "reconstruct")
    typer.echo(back(run=run, image=image, output=output, dtype=dtype, device_map=device_map))


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A finished run, also of a tower alone, or an official checkpoint."
        ),
    ],
    output: NewDirectory,
    licence: Annotated[
        str, typer.Option("--license", help="Of the weights, as model cards name it, such as cc-by-4.0.")
    ] = "not-stated",
) -> None:
    """Write a model for transformers' Auto classes, with its processor and a model card."""
    check.require_directory(run)
    typer.echo(_use("vilau_unified_lm.huggingface.export", "export")(run, output, licence))


@convert.command()
def from_official(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="With config.json, llm/, vision_tower/ and mm_projector/.")
    ],
    output: NewDirectory,
) -> None:
    """Write a checkpoint of the official code as a model directory of ours."""
    check.require_directory(directory)
    typer.echo(_use("vilau_unified_lm.convert.read", "convert_from_official")(directory, output))


@convert.command()
def to_official(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a directory of from-official.")],
    output: NewDirectory,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="An official or converted checkpoint of the same architecture, for what a run does not hold: the "
            "tokenizer's files and SigLIP's text model.",
        ),
    ] = None,
) -> None:
    """Write a model as a checkpoint of the official code."""
    check.require_directory(run)
    if like is not None:
        check.require_directory(like)
    typer.echo(_use("vilau_unified_lm.convert.write", "convert_to_official")(run, output, like))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished runs, such as runs/demo.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Of a comparison: its directory; comparison/ in the first run by itself."
        ),
    ] = None,
) -> None:
    """Write a run's report/index.html anew from its results; of several runs, a page that compares them."""
    for run in runs:
        check.require_run(run)
    if len(runs) > 1:
        typer.echo(_use(REPORT_MODULE, "compare_runs")(runs, output))
    elif output is not None:
        raise UserError("--output is for a comparison of several runs; a run's own report is in its report/")
    else:
        typer.echo(_use(REPORT_MODULE, "build_report")(runs[0]))


@app.command("app")
def page(
    run: Run,
    host: Annotated[
        str, typer.Option(help="The address to serve at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The first free one from 7860 on by itself.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    compile: Annotated[str, typer.Option(help="none, static or graph; see docs/generation.md.")] = "none",
) -> None:
    """Serve a page to chat about pictures and videos, and to draw. Needs the extra `app`."""
    check.require_run(run)
    _use(APP_MODULE, "serve")(run=run, host=host, port=port, device=device, compile=compile)


@app.command()
def guidance(
    run: Run,
    scales: Annotated[
        list[float] | None,
        typer.Argument(metavar="[SCALE]...", help="Guidance scales; 1 1.5 2 3 5 by themselves."),
    ] = None,
) -> None:
    """Draw a run's evaluation prompts at several guidance scales: a plot and a table of what is drawn right."""
    check.require_run(run)
    for scale in scales or ():
        check.require_at_least("SCALE", scale, 0)
    function = _use(GUIDANCE_MODULE, "sweep_guidance")
    typer.echo(function(run, scales) if scales else function(run))


app.add_typer(convert, name="convert")
