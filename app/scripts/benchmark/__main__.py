"""The command line: `python -m app.scripts.benchmark COMMAND --help`."""

import typer

from app.scripts.benchmark.kernels import kernels
from app.scripts.benchmark.memory import memory
from app.scripts.benchmark.quantization import quantization
from app.scripts.benchmark.quotes import quotes
from app.scripts.benchmark.speculation import speculation
from app.scripts.benchmark.speed import speed
from app.scripts.benchmark.structured import structured

cli = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure the engine.")
cli.command()(memory)
cli.command()(speed)
cli.command()(kernels)
cli.command()(quantization)
cli.command()(speculation)
cli.command()(structured)
cli.command()(quotes)


@cli.callback()
def _commands() -> None:
    """So that a single command, too, has to be named."""


if __name__ == "__main__":
    cli()
