"""Who is next: ageing, and fairness between tenants."""

import pytest

from app.engine.errors import EngineOverloaded, InvalidRequest
from app.engine.policy import FairShares
from tests.engine.control import Control, make_sequences


def sequence_of(tenant):
    return make_sequences("r", [1], tenant=tenant)[0]


def start_order(control, max_steps=2_000):
    """Request ids in the order in which they first computed something."""
    order = []
    while control.scheduler.has_work:
        for item in control.step().sequences:
            if item.sequence.request_id not in order:
                order.append(item.sequence.request_id)
        assert len(order) < max_steps
    return order


def test_a_tenant_with_a_long_queue_does_not_delay_anothers_single_request():
    control = Control(max_num_seqs=1)
    for index in range(50):
        control.add(f"many-{index}", [1, 2], max_tokens=2, tenant="many")
    control.step()
    control.add("single", [1, 2], max_tokens=2, tenant="single")
    assert start_order(control).index("single") <= 1


def test_tenants_with_long_queues_take_turns_by_tokens():
    """One asks for 4 tokens each time, the other for 8: it starts half as often."""
    control = Control(max_num_seqs=1, block_size=4, num_blocks=8, enable_prefix_caching=False)
    for index in range(24):
        control.add(f"short-{index}", [1, 2], max_tokens=3, tenant="a")
        control.add(f"long-{index}", [1, 2, 3, 4, 5], max_tokens=4, tenant="b")
    first = start_order(control)[:24]
    num_short = sum(request_id.startswith("short") for request_id in first)
    assert 15 <= num_short <= 17


def test_a_long_running_prompt_leaves_room_for_another_tenants_prompt():
    control = Control(budget=8, num_blocks=40)
    (long,) = control.add("long", range(1, 60), max_tokens=1, tenant="a")
    control.step()
    (short,) = control.add("short", range(71, 77), max_tokens=1, tenant="b")
    control.step()  # equal so far: the older one's turn
    batch = control.step()
    news = {item.sequence: item.num_new_tokens for item in batch.sequences}
    assert news == {short: 6, long: 2}


def test_what_another_tenant_cannot_use_is_not_lost():
    control = Control(budget=8, num_blocks=16, watermark=0.0)
    control.add("a", range(1, 40), max_tokens=1, tenant="a")
    control.step()
    control.add("b", range(1, 60), max_tokens=1, tenant="b")  # no blocks for it now
    assert control.step().num_new_tokens == 8


def test_a_request_that_waits_is_not_starved_by_urgent_ones():
    """Urgent requests arrive in each step; after `ageing_steps` a level the old one is equal."""
    control = Control(max_num_seqs=1, ageing_steps=10)
    (old,) = control.add("old", [1], max_tokens=1, priority=2)
    num_steps = 0
    while not old.is_finished:
        control.add(f"urgent-{num_steps}", [1], max_tokens=1, priority=-1)
        control.step()
        num_steps += 1
        assert num_steps < 40
    assert num_steps > 20


def test_ageing_does_not_let_a_flood_overtake_another_tenant():
    control = Control(max_num_seqs=1, ageing_steps=1)
    for index in range(40):
        control.add(f"flood-{index}", [1], max_tokens=2, tenant="flood")
    for _ in range(20):
        control.step()
    control.add("new", [1], max_tokens=2, tenant="other")
    assert start_order(control).index("new") <= 1


def test_new_tenants_without_end_do_not_starve_one_that_had_its_share():
    control = Control(max_num_seqs=1)
    control.add("rich-0", range(1, 13), max_tokens=8, tenant="rich")
    control.step()
    (again,) = control.add("rich-1", [1], max_tokens=1, tenant="rich")
    num_steps = 0
    while not again.is_finished:
        control.add(f"new-{num_steps}", [1], max_tokens=1, tenant=f"tenant-{num_steps}")
        control.step()
        num_steps += 1
        assert num_steps < 400


def test_a_preempted_sequence_goes_before_new_ones():
    control = Control(num_blocks=6, enable_prefix_caching=False)
    control.add("old", range(1, 9), max_tokens=12)
    (young,) = control.add("young", range(21, 29), max_tokens=12)
    while not young.num_preemptions:
        control.step()
    control.add("new", range(1, 9), max_tokens=1, tenant="other")
    order = start_order(control)
    assert order.index("young") < order.index("new")


def test_deficits_add_up_to_nothing_and_are_forgotten_when_a_tenant_leaves():
    shares = FairShares(max_deficit=100)
    for tenant in ("a", "b", "c"):
        shares.enter(tenant)
    shares.charge({sequence_of("a"): 30, sequence_of("b"): 6})
    assert [shares.deficit(tenant) for tenant in "abc"] == [-18, 6, 12]
    shares.leave("a")
    shares.enter("a")
    assert shares.deficit("a") == 0


def test_nobody_is_owed_more_than_the_limit():
    shares = FairShares(max_deficit=10)
    shares.enter("served")
    shares.enter("blocked")
    for _ in range(50):
        shares.charge({sequence_of("served"): 8})
    assert (shares.deficit("served"), shares.deficit("blocked")) == (-10, 10)


def test_a_tenant_may_take_half_of_the_queue():
    control = Control(max_num_queued=4)
    for index in range(2):
        control.add(f"mine-{index}", [1], tenant="mine")
    with pytest.raises(
        EngineOverloaded, match=r"2 requests of this tenant are waiting, .* takes 2"
    ):
        control.add("mine-2", [1], tenant="mine")
    control.add("other", [1], tenant="other")


def test_a_priority_out_of_range_is_refused():
    with pytest.raises(InvalidRequest, match=r"priority is 1001, .* between -1000 and 1000"):
        Control().add("a", [1], priority=1001)
