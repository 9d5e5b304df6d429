"""The command `vilau`.

Verbs that train, prepare and evaluate take Hydra overrides (`vilau train-tower tower.quantizer.depth=2`), see
`cli_verbs`; those that use a finished run take ordinary options, see `cli_use`. What a verb needs is imported when it
is called, so that the help costs nothing.

Exit status: 0; 2 after a user's mistake, told in one sentence; 128 + the signal's number after a training that a
signal stopped in good order; 130 after Ctrl-C. Everything else is a defect of ours and keeps its stack trace. Of
several processes (torchrun) the first to fail tells why, once for all of them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from vilau_common.errors import UserError
from vilau_unified_lm import cli_use
from vilau_unified_lm.cli_verbs import VERBS, Verb

USER_ERROR_STATUS = 2
DEFECT_STATUS = 1  # Python's own for an exception
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, and groups to choose from."),
]
ConfigDirectory = Annotated[
    Path | None, typer.Option("--config-dir", help="Where the YAML files are; the nearest conf/ by itself.")
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the settings and do nothing.")]
app = typer.Typer(
    name="vilau",
    help="Train vision towers and unified language models that see and draw, and use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. arguments: the command line's own by default."""
    # Read when the hub's client is imported: our own bars tell the stage, theirs would flash between them.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # transformers' own default SigLIP has ids beyond its vocabulary, and says so each time that it compares with it.
    logging.getLogger("transformers.configuration_utils").setLevel(logging.ERROR)
    try:
        # A status for --help and the like; our own commands return nothing.
        status = app(None if arguments is None else list(arguments), standalone_mode=False, prog_name="vilau")
        return status if isinstance(status, int) else 0
    except UserError as error:
        return _failed(str(error))
    except TyperException as error:
        sentence = error.format_message()  # empty where no command is given and the help was printed
        return _failed(sentence) if sentence else USER_ERROR_STATUS
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Imported here, since it costs what the help should not.
        from vilau_common.training.interrupt import TrainingInterrupted

        if not isinstance(error, TrainingInterrupted):
            if _is_first_to_fail():
                raise
            return DEFECT_STATUS
        if os.environ.get("RANK", "0") == "0":
            print(f"vilau: {error}", file=sys.stderr)
        return error.exit_status


def _is_first_to_fail() -> bool:
    """Of several processes one tells what ended them all."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from vilau_common import distributed

    return distributed.first_to_fail()


def _failed(sentence: str) -> int:
    if not _is_first_to_fail():
        return USER_ERROR_STATUS
    from rich.console import Console
    from rich.text import Text

    # Not wrapped and not read as markup: the sentence may hold paths and [brackets].
    told = Text.assemble(("vilau: error: ", "bold red"), sentence)
    Console(stderr=True).print(told, soft_wrap=True, highlight=False)
    return USER_ERROR_STATUS


# --- verbs that Hydra configures ---------------------------------------------------------------------------------


def _command(verb: Verb) -> Callable[..., None]:
    def command(
        overrides: Overrides = None, config_dir: ConfigDirectory = None, print_config: PrintConfig = False
    ) -> None:
        overrides = overrides or []
        config = verb.load(overrides, config_dir)  # of a sweep or a job, too, mistakes are told now
        if print_config:
            from vilau_common.config import config_to_yaml

            typer.echo(config_to_yaml(config), nl=False)
            return
        if verb.sweeps:
            verb.entry()(overrides, config_dir)
        elif verb.is_launched(overrides):
            verb.launch(overrides, config_dir)
        else:
            verb.entry()(config)
            if verb.trains:
                from vilau_common import distributed

                distributed.leave()

    return command


for _verb in VERBS:
    app.command(
        _verb.name,
        short_help=_verb.summary,
        help=f"{_verb.summary} Its settings are those of conf/{_verb.config}.yaml.",
    )(_command(_verb))


app.add_typer(cli_use.app)


if __name__ == "__main__":
    sys.exit(main())
