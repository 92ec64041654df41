"""Schedules against the published code's numbers and against numbers written by hand."""

import itertools
import math
import types

import pytest
import torch

from lr_sched import adjust_learning_rate, cosine_scheduler, learning_rate, make_schedule, set_head_lr_scale, set_learning_rate


def optimizer_of(scales, lr=123.0):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], **({} if s is None else {"lr_scale": s})} for s in scales]
    return torch.optim.SGD(groups, lr=lr)


@pytest.mark.parametrize("name", ["v2_adjust_learning_rate", "mae_adjust_learning_rate"])
def test_adjust_learning_rate_equals_published(golden, name):
    cases = golden(f"3_schedules/{name}.json.gz")["cases"]
    for case in cases:
        config = case["config"]
        args = types.SimpleNamespace(**{key: config[key] for key in ("lr", "min_lr", "epochs", "warmup_epochs")})
        optimizer, row = optimizer_of(config["lr_scales"]), 0
        for epoch in range(config["start_epoch"], config["run_epochs"]):
            for step in range(config["len_loader"]):
                if step % config["update_freq"] == 0:
                    returned = adjust_learning_rate(optimizer, step / config["len_loader"] + epoch, args)
                    assert returned == pytest.approx(case["returned"][row], rel=1e-12)
                rates = [group["lr"] for group in optimizer.param_groups]
                assert rates == pytest.approx(case["group_lr"][row], rel=1e-12)
                row += 1
        assert row == len(case["group_lr"])


def test_cosine_scheduler_equals_published(golden):
    for case in golden("3_schedules/v1_cosine_scheduler.json.gz")["cases"]:
        config = case["config"]
        if "raises" not in case:
            assert cosine_scheduler(**config) == pytest.approx(case["values"], rel=1e-12)
        elif 0 < config["warmup_steps"] < config["epochs"] * config["niter_per_ep"]:
            values = cosine_scheduler(**config)  # fails there, works here: the same as with warmup_epochs=1
            assert values == cosine_scheduler(**{**config, "warmup_epochs": 1})
        else:
            with pytest.raises(ValueError, match="warm-up has .* updates but the whole run only"):
                cosine_scheduler(**config)


def test_cosine_scheduler_over_a_grid():
    for epochs, niter, warmup, steps in itertools.product((1, 3, 10), (1, 7), (0, 1, 20), (-1, 0, 3, 10**6)):
        length = steps if steps > 0 else warmup * niter
        if length > epochs * niter:
            with pytest.raises(ValueError, match="warm-up"):
                cosine_scheduler(1.0, 0.1, epochs, niter, warmup, 0.0, steps)
            continue
        values = cosine_scheduler(1.0, 0.1, epochs, niter, warmup, 0.0, steps)
        assert len(values) == epochs * niter
        assert all(0 <= value <= 1 for value in values)
        rise, fall = values[:length], values[length:]
        assert rise == sorted(rise) and fall == sorted(fall, reverse=True)
    with pytest.raises(ValueError, match="empty"):
        cosine_scheduler(1.0, 0.1, 3, 0)


def test_encoding_schedules_equal_published(golden):
    modes = {"cos": "cosine", "poly": "poly", "step": "step"}
    for case in golden("3_schedules/encoding_lr_scheduler.json.gz")["cases"]:
        config = case["config"]
        settings = {
            "lr": config["base_lr"], "epochs": config["num_epochs"], "warmup_epochs": config["warmup_epochs"],
            "step_epochs": config["lr_step"] or 30,
        }  # fmt: skip
        if config["mode"] not in modes:
            with pytest.raises(ValueError, match="unknown schedule 'bogus': choose from cosine"):
                learning_rate(0, config["iters_per_epoch"], sched=config["mode"], **settings)
            continue
        optimizer = optimizer_of([None] * config["n_groups"])
        if config["cls"] == "LR_Scheduler_Head":
            set_head_lr_scale(optimizer)
        first = config["start_epoch"] * config["iters_per_epoch"]
        for row, expected in enumerate(case["group_lr"]):
            lr = learning_rate(first + row, config["iters_per_epoch"], sched=modes[config["mode"]], **settings)
            set_learning_rate(optimizer, lr)
            rates = [group["lr"] for group in optimizer.param_groups]
            assert rates == pytest.approx(expected, rel=1e-12, abs=1e-300), (config, row)
        if case["raises"]:  # past the end, where the published code divides by zero or takes a root of less than zero
            last = learning_rate(
                first + len(case["group_lr"]), config["iters_per_epoch"], sched=modes[config["mode"]], **settings
            )
            assert last == 0.0


def test_by_hand():
    common = {"lr": 1.0, "epochs": 10, "warmup_epochs": 2}

    def at(update, **more):
        return learning_rate(update, 5, **{**common, **more})

    for sched in ("cosine", "poly", "constant", "step", "wsd"):
        assert [at(u, sched=sched) for u in (0, 1, 5)] == pytest.approx([0.0, 0.1, 0.5])
    assert at(10) == 1.0 and at(30) == pytest.approx(0.5) and at(30, min_lr=0.2) == pytest.approx(0.6)
    assert at(30, sched="poly", power=1.0) == pytest.approx(0.5)
    assert at(49, sched="constant") == 1.0
    assert [at(u, sched="step", step_epochs=3) for u in (14, 15, 30)] == pytest.approx([1.0, 0.1, 0.01])
    assert [at(u, sched="wsd", decay_epochs=2) for u in (39, 40, 45, 49)] == pytest.approx([1.0, 1.0, 0.5, 0.1])
    assert at(49, sched="wsd") == pytest.approx(0.2)  # the last leg is one epoch of five updates
    assert at(4, warmup_steps=8) == pytest.approx(0.5)  # updates win over epochs


def test_cosine_dinov3_by_hand():
    """100 updates, 10 of them warm-up: 1e-6 + (1 - 1e-6) k / 10 times 1 - k / 100, then (1 + cos((k + 1) pi / 100)) / 2,
    where k is the update before. The first update is there twice, for the published scheduler first steps after the second.
    """
    rates = [learning_rate(update, 5, sched="cosine_dinov3", lr=1e-3, epochs=20, warmup_steps=10) for update in range(100)]
    assert rates[0] == rates[1] == pytest.approx(1e-9, rel=1e-9)
    assert rates[2] == pytest.approx(1e-3 * (1 - 0.9 * (1 - 1e-6)) * 0.99, rel=1e-12)
    assert rates[10] == pytest.approx(1e-3 * (1 - 0.1 * (1 - 1e-6)) * 0.91, rel=1e-12)
    # of the published scheduler itself
    published = {5: 0.00038400057600000004, 11: 0.0009704403844771128, 12: 0.0009648882429441257, 99: 2.467198171342e-07}
    assert {update: rates[update] for update in (5, 11, 12, 99)} == pytest.approx(published, rel=1e-9)
    assert rates[50] == pytest.approx(5e-4, rel=1e-12)


def test_cosine_v1_is_cosine_scheduler():
    values = cosine_scheduler(4e-3, 1e-6, 6, 10, 2)
    mine = [learning_rate(u, 10, sched="cosine_v1", lr=4e-3, min_lr=1e-6, epochs=6, warmup_epochs=2) for u in range(60)]
    assert mine == values and mine.count(4e-3) == 2


@pytest.mark.parametrize("start", [0.05, 0.0])
def test_weight_decay_schedule_reaches_its_groups_and_leaves_the_others(start):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": wd} for wd in (0.05, 0.0)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = make_schedule(optimizer, 4, weight_decay=start, weight_decay_end=0.05 - start, lr=1.0, epochs=2)
    optimizer.load_state_dict(optimizer.state_dict())  # as a resume and Accelerate's prepare do: new dicts for the groups
    seen = []
    for update in [*range(8), 3]:  # back to 3, as a resumed run does
        assert schedule(update) == optimizer.param_groups[0]["lr"]
        seen.append(optimizer.param_groups[0]["weight_decay"])
        assert optimizer.param_groups[1]["weight_decay"] == 0.0
    expected = [0.05 - start + (2 * start - 0.05) * 0.5 * (1 + math.cos(math.pi * u / 8)) for u in [*range(8), 3]]
    assert seen == pytest.approx(expected, abs=1e-15)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warm-up has 100 updates but the whole run only 50"):
        make_schedule(optimizer_of([1.0]), 5, lr=1.0, epochs=10, warmup_epochs=20)


def test_a_late_group_waits_for_the_warm_up_of_the_others_and_has_its_own():
    """EoMT's schedule in two stages: tue-mps/eomt, training/two_stage_warmup_poly_schedule.py, by its formula."""
    optimizer = optimizer_of([1.0, 0.5])
    optimizer.param_groups[1]["late_warmup"] = 6
    schedule = make_schedule(optimizer, 5, sched="poly", power=0.9, lr=2.0, epochs=8, warmup_steps=4)
    optimizer.load_state_dict(optimizer.state_dict())  # as a resume does
    for update in (0, 3, 4, 7, 10, 11, 39, 5):
        schedule(update)
        heads = update / 4 if update < 4 else (1 - (update - 4) / 36) ** 0.9
        late = max(update - 4, 0) / 6 if update < 10 else (1 - (update - 10) / 30) ** 0.9
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * heads, 2 * 0.5 * late], rel=1e-12)
    with pytest.raises(ValueError, match="warm-up has 37 updates but the whole run only 36"):
        optimizer.param_groups[1]["late_warmup"] = 37
        make_schedule(optimizer, 5, sched="poly", lr=2.0, epochs=8, warmup_steps=4)


@pytest.mark.parametrize("step_epochs", [0, -1])
def test_steps_of_no_length_are_refused(step_epochs):
    with pytest.raises(ValueError, match=f"step_epochs {step_epochs}: expected a number above 0"):
        learning_rate(0, 10, sched="step", lr=1.0, epochs=5, step_epochs=step_epochs)
