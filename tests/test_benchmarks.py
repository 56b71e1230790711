"""The benchmarks run, at a tiny size."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

TINY = ["--batch", "2", "--vocabulary", "512", "--seconds", "0", "--rounds", "1", "1"]


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


@pytest.mark.slow
def test_settings_table_and_file(tmp_path, capsys):
    import run

    run.main([*TINY, "--quick", "--setting", "greedy", "--output", str(tmp_path / "speed")])
    assert "[2, 512] float32, real logits" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "speed.json").read_text())["records"]
    softmax, greedy = record["calls"].values()
    assert softmax["ratio"] == record["rounds"] == 1
    assert greedy["ratio"] == greedy["ms"] / softmax["ms"] > 0
    assert greedy["compile_s"] > 0
    assert greedy["temporaries"] >= 0


@pytest.mark.slow
def test_sweep_table(tmp_path, capsys):
    import run

    run.main([*TINY, "--cliffs", "--sweep", "temperature", "--output", str(tmp_path / "cliffs")])
    assert "largest ratio of neighbours: " in capsys.readouterr().out


@pytest.mark.slow
def test_table_of_a_gpu_wherever_it_runs(tmp_path, capsys):
    import gpu

    gpu.main([*TINY, "--setting", "T", "--output", str(tmp_path / "gpu")])
    assert "[2, 512] float32, real logits" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert record["calls"]["T"]["ratio"] > 0
    assert record["calls"]["jax.random.categorical (T)"]["ms"] > 0


def test_every_kind_of_logits_and_setting():
    import cells

    for kind in cells.LOGITS:
        assert cells.make_logits(9, 777, "bfloat16", kind).shape == (9, 777)
    for name in cells.CALLS:
        assert cells.make_call(name, 3).settings


def test_peer_that_fails_is_told_beside_one_that_does_not(monkeypatch):
    import peers

    calls = {"argmax": ("T", lambda key, x: x.argmax(1)), "broken": ("T", lambda key, x: x.sort(2))}
    peer = peers.PEERS["jax"]._replace(calls=lambda: calls)
    monkeypatch.setitem(peers.PEERS, "jax", peer)
    shape = {"batch": 2, "vocabulary": 512, "dtype": "float32", "logits": "real"}
    found = peers.work("jax", Namespace(**shape, seconds=0, rounds=(1, 1)))["calls"]
    assert found["argmax"]["ms"] > 0
    assert found["sampling_jax T"]["ms"] > 0
    assert found["broken"]["error"].startswith("ValueError")
