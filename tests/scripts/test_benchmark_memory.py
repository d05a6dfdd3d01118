import pytest

from app.scripts.benchmark.memory import Limits, draw_requests, run_model, simulate

LIMITS = Limits(block_size=16, max_model_len=4096, max_tokens=1024)


def waste_of(snapshots):
    held = sum(snapshot.num_held_tokens for snapshot in snapshots)
    return 1 - held / sum(snapshot.num_reserved_slots for snapshot in snapshots)


@pytest.mark.slow
def test_blocks_waste_less_than_four_percent_on_a_mix_of_64_requests():
    snapshots = list(simulate(draw_requests(64, 1024, seed=0), LIMITS))
    assert waste_of(snapshots) < 0.04
    assert max(len(snapshot.running) for snapshot in snapshots) > 20


def test_the_model_holds_what_the_control_plane_says():
    limits = Limits(block_size=16, max_model_len=256, max_tokens=24)
    load = [r for r in draw_requests(12, 24, seed=1) if r.num_prompt_tokens < 200]
    model, control = list(run_model(load, limits)), list(simulate(load, limits))
    assert model == control
