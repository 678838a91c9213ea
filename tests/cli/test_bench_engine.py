import json

from medha_jax.cli.opening import StartWatch

MESH = "page_size: 16\nbuckets: {decode: [4], prefill: [64], chunks: 2}\n"


def test_the_engine_is_measured_without_a_network(medha, model, tmp_path):
    (tmp_path / "mesh.yaml").write_text(MESH)
    sizes = ["--chunks", "16,64", "--contexts", "0,30", "--batches", "1,4", "--decode-context", 20, "--ticks", 1]
    done = medha("bench", "engine", "--model", model, "--mesh", tmp_path / "mesh.yaml", *sizes, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["rows"], one["context"]) for one in found["prefill"]] == [(16, 0), (64, 0), (16, 30), (64, 30)]
    assert [one["rows"] for one in found["decode"]] == [1, 4]
    for one in found["prefill"] + found["decode"]:
        assert one["seconds"] > 0 and one["tokens_per_second"] == one["rows"] / one["seconds"]
    assert found["start"]["programs"] == 2 and 0 < found["start"]["compile_seconds"] < found["start"]["seconds"]
    assert found["host"]["ticks"] > 6


def test_a_start_is_timed_by_what_it_tells(capsys):
    watch = StartWatch()
    for line in ("loaded", "compiling 2 shapes", "compiled 1/2: a in 1 s (from the cache)", "compiled 2/2: b in 2 s"):
        watch.told(line)
    watch.ready()
    assert (watch.programs, watch.from_cache) == (2, 1)
    assert 0 <= watch.compile_s <= watch.start_s
    assert capsys.readouterr().err.splitlines()[0] == "loaded"
