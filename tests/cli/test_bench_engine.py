import json

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
