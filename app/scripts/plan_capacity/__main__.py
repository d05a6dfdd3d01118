"""What so many documents and users need: `python -m app.scripts.plan_capacity --documents N …`.

The costs of one document and one question are measured; those of language models are given.
"""

import json as json_format
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.errors import FolioError, InvalidInput
from app.scripts.plan_capacity.costs import MEASURED, Costs
from app.scripts.plan_capacity.plan import Load, Machines, Plan, plan

BAD_USAGE = 2
console = Console(soft_wrap=True, highlight=False)


def main(  # noqa: PLR0913 (a command has as many arguments as it has options)
    documents: Annotated[int, typer.Option(min=1, help="Documents.")] = 1_000_000,
    users: Annotated[int, typer.Option(min=1, help="Users at a time.")] = 1000,
    questions_per_hour: Annotated[
        float, typer.Option(min=0.01, help="Questions of each user in an hour.")
    ] = 12.0,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a prompt with its passages.")
    ] = 1500,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, mean.")] = 200,
    wait_s: Annotated[
        float, typer.Option(min=0, help="Longest wait for a generator, for 95 % of answers.")
    ] = 1.0,
    prefill_tokens_per_s: Annotated[
        float, typer.Option(min=1, help="Prompt tokens that one generator reads in a second.")
    ] = 449.0,
    decode_tokens_per_s: Annotated[
        float, typer.Option(min=1, help="Answer tokens that it writes, with all seats taken.")
    ] = 78.7,
    seats: Annotated[
        int, typer.Option(min=1, help="Answers that it writes at a time (…_MAX_NUM_SEQS).")
    ] = 32,
    kv_bytes_per_token: Annotated[
        int, typer.Option(min=1, help="KV cache of one token of its model.")
    ] = 12_288,
    api_cores: Annotated[int, typer.Option(min=1, help="Cores of an api replica.")] = 2,
    ingest_cores: Annotated[int, typer.Option(min=1, help="Cores that ingest.")] = 16,
    dimension: Annotated[int, typer.Option(min=1, help="Of the embedding model.")] = 384,
    costs: Annotated[
        Path | None, typer.Option(help="What plan_capacity.measure printed on your machine.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Calculate storage and machines, and simulate how long questions wait.

    The defaults are those of docs/scaling.md, where each has its source. Give the rates of your
    language model: the default is a small one on two CPU cores.
    """
    load = Load(documents, users, questions_per_hour, prompt_tokens, answer_tokens, 0.5, wait_s)
    machines = Machines(
        api_cores,
        ingest_cores,
        dimension,
        prefill_tokens_per_s,
        decode_tokens_per_s,
        seats,
        kv_bytes_per_token,
    )
    try:
        found = plan(load, machines, read_costs(costs) if costs else MEASURED)
    except FolioError as error:
        Console(stderr=True).print(f"plan_capacity: {error}", style="red", markup=False)
        raise typer.Exit(BAD_USAGE) from error
    if json:
        sys.stdout.write(json_format.dumps(asdict(found), indent=2) + "\n")
    else:
        console.print(table(found))


def read_costs(path: Path) -> Costs:
    """Raise InvalidInput for a file that does not hold all costs, as positive numbers."""
    names = [field.name for field in fields(Costs)]
    try:
        found: Any = json_format.loads(path.read_text())
        values = [float(found[name]) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(
            f"{path} is not what plan_capacity.measure prints: {type(error).__name__} {error}"
        ) from error
    if min(values) <= 0:
        raise InvalidInput(f"{path} holds a cost that is not above 0")
    return Costs(**{name: found[name] for name in names})


def table(found: Plan) -> Table:
    """The plan for people."""
    rows = Table("needed", "for this load")
    rows.add_row("questions a second", f"{found.questions_per_s:.2f}")
    rows.add_row("chunks", f"{found.chunks:,}")
    rows.add_row("first ingestion", f"{found.ingest_hours:.1f} h")
    rows.add_row("Milvus, memory", f"{found.milvus_memory_gb:.1f} GB")
    rows.add_row("Milvus, disk", f"{found.milvus_disk_gb:.1f} GB")
    rows.add_row("SQL database", f"{found.sql_gb:.1f} GB")
    rows.add_row("original files", f"{found.files_gb:.1f} GB")
    rows.add_row("api replicas", str(found.api_replicas))
    rows.add_row(
        "  waiting p50, p95", f"{found.api_wait.p50_s:.2f} s, {found.api_wait.p95_s:.2f} s"
    )
    rows.add_row("generators", f"{found.generators} ({found.generator_busy:.0%} busy)")
    waiting = found.generator_wait
    rows.add_row("  waiting p50, p95", f"{waiting.p50_s:.2f} s, {waiting.p95_s:.2f} s")
    rows.add_row("  an answer, all seats taken", f"{found.answer_s:.1f} s")
    rows.add_row("  KV cache of each", f"{found.kv_cache_gb:.2f} GB")
    return rows


if __name__ == "__main__":
    typer.run(main)
