"""An appliance whose embedding model was changed, to be killed: `index_process DATA MODEL [die]`.

It says how many documents are missing in the new index each time that changes, asks a question
each time, and ends when the new index serves. With `die` it kills itself between the switch in
SQL and the alias.
"""

import os
import signal
import sys
from pathlib import Path

from app.config import Settings
from app.domain import IndexState, Question
from app.rag.store import MilvusStore
from app.wiring.appliance import build_services

TIMEOUT_S = 60


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    data, model = Path(sys.argv[1]), sys.argv[2]
    settings = Settings(
        _env_file=None,
        data_dir=data,
        manual_dir=None,
        llm_model="extractive",
        embedding_model=model,
        num_threads=1,
    )
    services = build_services(settings)
    services.start()
    assert services.is_settled.wait(TIMEOUT_S)
    assert services.progress.phase == "ready", services.progress
    if sys.argv[3:] == ["die"]:
        MilvusStore.point_alias = lambda store: os.kill(os.getpid(), signal.SIGKILL)
    told = None
    while True:
        hits = services.retriever.retrieve(Question("What does ship 7 carry?"), 5).hits
        assert any("Ship 7 carries" in hit.chunk.span.text for hit in hits)
        infos = {info.spec.embedding_model: info for info in services.records.indexes.all()}
        if infos[model].state == IndexState.SERVING and services.embedder.name == model:
            break
        if told != infos[model].num_missing:
            told = infos[model].num_missing
            tell(f"missing {told}")
    services.close(10)
    tell("switched")


if __name__ == "__main__":
    main()
