import math

import pytest
import torch
from typer.testing import CliRunner

from app.scripts.benchmark.__main__ import cli
from app.scripts.benchmark.quantization import FORMS, Loss
from tests.engine import tiny


def test_equal_logits_lose_nothing():
    logits = torch.randn(3, 10)
    assert Loss.of(logits, logits) == Loss(0, 0, 0, 0, 1)


def test_the_loss_of_a_known_change():
    exact = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    changed = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    loss = Loss.of(changed, exact)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert loss.max_divergence == pytest.approx(divergence)
    assert loss.mean_divergence == pytest.approx(divergence / 2)
    assert loss.max_error == pytest.approx(math.log(3) / exact[0].std().item())
    assert loss.same_top == 1  # the first of equals


@pytest.mark.slow
def test_the_command_measures_every_form_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tiny.make_checkpoint(tmp_path, "qwen3")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny.CORPUS))
    options = ["--prompts", "2", "--prompt-tokens", "20", "--threads", "1"]
    arguments = ["quantization", "--model", str(tmp_path), "--text", str(text), *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "%" in line]
    assert len(rows) == len(FORMS)
    assert "0.0000" in rows[0]
    assert "100.0 %" in rows[0]
