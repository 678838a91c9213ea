"""`medha-jax bench` as users run it, against servers that compute nothing."""

import json
import os
import signal
import subprocess
import sys

import pytest

from medha_jax.cli import run
from medha_jax.client import Client
from medha_jax.config import Buckets
from medha_jax.results import read_runs, write_run
from tests.bench.conftest import Completions
from tests.cli.command import COMMAND, ROOT
from tests.results.recorded import convoy
from tests.results.recorded import run as run_of
from tests.server.processes import SIMULATED, ServerProcess, wait_until

LARGEST = Buckets().prefill[-1]
LOAD = ["--workload", "random", "--prompt-tokens", "5-200", "--output-tokens", "8", "--rate", "100"]


@pytest.fixture(scope="module")
def simulated():
    with ServerProcess(*SIMULATED, "--tick-ms", 2, "--slots", 32) as started:
        yield started


@pytest.fixture(scope="module")
def completions():
    server = Completions()
    yield server
    server.close()


def bench(capsys, *arguments):
    """Exit code and what was printed."""
    code = run(["bench", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_run_is_printed_and_written(capsys, simulated, tmp_path):
    objectives = ["--slo-ttft-ms", 5000, "--slo-tpot-ms", 1000, "--probe", 20, "--warmup", 2]
    code, out, err = bench(
        capsys, "serve", "--server", simulated.address, *LOAD, "--num-requests", 50, *objectives, "--out", tmp_path
    )
    assert code == 0, err
    assert "Overview" in out and "Times by kind" in out and "probe" in out and "attainment" in out
    assert f"wrote {tmp_path / 'report.html'}" in err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["completed"] == 50 and summary["total_output_tokens"] == 400 and summary["failed"] == 0
    assert summary["median_ttft_ms"] > 0 and summary["attainment"] == 1.0 and summary["formulas"]["TTFT"]
    assert summary["config"]["workload"].startswith("random 5-200 + 8 tokens, poisson at 100 requests/s, 50 requests")
    assert summary["stamp"]["served"]["model"] == "simulated" and "bench" not in summary["config"]["server"]
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("short") == 50 and kinds.count("probe") > 3 and "warmup" not in kinds
    assert {line["counted"] for line in lines} == {"ids"}


def test_as_json_with_repeats_and_failures(capsys, simulated):
    """Prompts that do not fit are refused by the server; they are counted with its words."""
    asked = ["--workload", "random", "--prompt-tokens", "6000-10000", "--output-tokens", "2", "--rate", "inf"]
    code, out, err = bench(
        capsys, "serve", "--server", simulated.address, *asked, "--num-requests", 20, "--repeat", 2, "--json"
    )
    assert code == 2 and "of 20 requests are longer than the context of 8,192 tokens" in err and out == ""
    asked[3] = "100-400"
    code, out, _ = bench(
        capsys, "serve", "--server", simulated.address, *asked, "--num-requests", 20, "--repeat", 2, "--json"
    )
    (found,) = json.loads(out)["runs"]
    assert code == 0 and [repeat["completed"] for repeat in found["repeats"]] == [20, 20]
    assert found["rate"] == "inf" and found["config"]["requests"]["seed"] == 0
    assert found["repeats"][0]["total_input_tokens"] != found["repeats"][1]["total_input_tokens"]


def test_a_server_with_the_openai_api(capsys, completions, tmp_path):
    code, out, err = bench(
        capsys, "serve", "--url", completions.url(), *LOAD, "--num-requests", 30, "--seed", 4, "--out", tmp_path
    )
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and {(line["counted"], line["status"]) for line in lines} == {("usage", "ok")}
    assert all(sum([line["output_counts"]] * 8) == 8 for line in lines)
    sent = completions.server.seen[-30:]
    assert sorted(len(request["prompt"]) for request in sent) == sorted(line["prompt_tokens"] for line in lines)
    assert max(max(request["prompt"]) for request in sent) < 1000  # ids that every vocabulary has
    code, out, err = bench(
        capsys, "serve", "--url", completions.url("error"), "--served-model", "x", *LOAD, "--num-requests", 7
    )
    assert code == 1 and "7 of 7 requests failed: error in the stream: the engine died" in err
    assert "Failures" in out


def test_runs_are_compared(capsys, simulated, completions, tmp_path):
    for name, where in (("a", ["--server", simulated.address]), ("b", ["--url", completions.url()])):
        assert bench(capsys, "serve", *where, *LOAD, "--num-requests", 10, "--out", tmp_path / name)[0] == 0
    code, out, err = bench(capsys, "compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both")
    assert code == 0 and simulated.address in out and completions.url() in out
    assert (tmp_path / "both" / "report.html").exists() and "wrote" in err
    code, out, _ = bench(capsys, "compare", tmp_path / "a", tmp_path / "a", "--json")
    assert [one["name"] for one in json.loads(out)["runs"]] == [f"{simulated.address} (a)"] * 2
    code, out, _ = bench(capsys, "compare", tmp_path, "--json")
    assert len(json.loads(out)["runs"]) == 2
    code, _, err = bench(capsys, "compare", tmp_path / "none")
    assert code == 2 and err.startswith("error: cannot read")


def test_the_highest_rate_is_searched(capsys, simulated, tmp_path):
    """A minute for a first token: every rate is good. Ten microseconds: none is."""
    asked = ["--workload", "random", "--prompt-tokens", "64", "--output-tokens", "8"]
    code, out, err = bench(
        capsys, "search", "--server", simulated.address, *asked, "--duration", 0.5, "--start-rate", 20,
        "--most-rates", 3, "--slo-ttft-ms", 60_000, "--out", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    assert "Rates tried" in out and "requests/s (no higher one was tried)" in out
    assert [f"{rate} requests/s:" in err for rate in (20, 40, 80)] == [True] * 3
    assert len(list(tmp_path.glob("*/summary.json"))) == 3 and (tmp_path / "report.html").exists()
    code, out, _ = bench(
        capsys, "search", "--server", simulated.address, *asked, "--duration", 0.3, "--start-rate", 40,
        "--most-rates", 2, "--slo-ttft-ms", 0.01, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 1 and found["best"] is None
    assert [one["rate"] for one in found["tried"]] == [40, 20] and found["tried"][0]["attainment"] == 0


def test_a_rate_that_has_no_requests_ends_a_search_and_loses_nothing(capsys, simulated, tmp_path):
    asked = ["--workload", "random", "--prompt-tokens", "64", "--output-tokens", "8", "--duration", 0.2]
    code, out, err = bench(
        capsys, "search", "--server", simulated.address, *asked, "--start-rate", 20, "--most-rates", 12,
        "--slo-ttft-ms", 0.01, "--json", "--out", tmp_path,
    )  # fmt: skip
    assert code == 1 and "the search ends before" in err and "no request is due within 0.2 s" in err, err
    tried = json.loads(out)["tried"]
    assert tried[0] == {"rate": 20, "attainment": 0} and tried[-1]["attainment"] is None
    assert len(read_runs([tmp_path])) == len(tried) - 1


def test_an_own_server_holds_the_requests_of_every_repeat(capsys, monkeypatch):
    """Seeds draw other lengths; the server's context must hold the longest of all."""
    stand_in = (sys.executable, "-m", "benchmarks.simulated_server", "--tick-ms", "1")
    monkeypatch.setattr("medha_jax.bench.own_server.SERVE", stand_in)
    monkeypatch.chdir(ROOT)
    asked = ["--workload", "random", "--prompt-tokens", "10-4000", "--output-tokens", "2", "--rate", "inf"]
    code, out, err = bench(capsys, "serve", *asked, "--num-requests", 2, "--repeat", 4, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["runs"]
    assert [repeat["completed"] for repeat in found["repeats"]] == [2] * 4


def test_a_convoy_keeps_the_rows_before_a_server_that_does_not_start(capsys, monkeypatch, tmp_path):
    script = "import sys; assert '--policy=lars' not in sys.argv; from benchmarks.simulated_server import main; main()"
    generated = json.dumps({"ttft_s": 1.0, "tpot_s": 0.02, "token_ids": [7] * 16})
    monkeypatch.setattr("medha_jax.bench.own_server.SERVE", (sys.executable, "-c", script))
    monkeypatch.setattr("medha_jax.bench.best_alone.GENERATE", (sys.executable, "-c", f"print('{generated}')"))
    monkeypatch.chdir(ROOT)
    shape = ["--long-prompt", 800, "--shorts", 2, "--short-prompt", 32, "--short-output", 4, "--interval", 0.1]
    code, out, err = bench(capsys, "convoy", *shape, "--policies", "fcfs,lars", "--json", "--out", tmp_path)
    assert code == 1 and "error: " in err, err
    assert [row["name"] for row in json.loads(out)["rows"]] == ["fcfs"]
    assert [one.name for one in read_runs([tmp_path])] == ["fcfs"]


def test_results_are_never_written_over(capsys, simulated, tmp_path):
    taken, file = tmp_path / "taken", tmp_path / "file"
    write_run(taken / "one", run_of("one", convoy(1)))
    file.write_text("")
    for out, message in ((taken, "taken holds results; give another directory"), (file, "File exists")):
        code, _, err = bench(capsys, "serve", "--server", simulated.address, *LOAD, "--num-requests", 2, "--out", out)
        assert code in (1, 2) and message in err, err


def test_a_convoy_over_its_own_servers_shows_who_waits(capsys, monkeypatch, tmp_path):
    """The servers are simulated ones: 150 µs for every prompt token, so the long prompt takes more than a second."""
    stand_in = (sys.executable, "-m", "benchmarks.simulated_server", "--tick-ms", "2", "--token-us", "150")
    generated = json.dumps({"ttft_s": 1.0, "tpot_s": 0.02, "token_ids": [7] * 16})
    counted = f"import sys; ids = sys.stdin.read().split(','); assert len(ids) == 8000; print('{generated}')"
    monkeypatch.setattr("medha_jax.bench.own_server.SERVE", stand_in)
    monkeypatch.setattr("medha_jax.bench.best_alone.GENERATE", (sys.executable, "-c", counted))
    monkeypatch.chdir(ROOT)
    shape = ["--long-prompt", 8000, "--shorts", 5, "--short-prompt", 32, "--short-output", 4, "--interval", 0.1]
    code, out, err = bench(capsys, "convoy", *shape, "--policies", "fcfs-whole,lars", "--json", "--out", tmp_path)
    assert code == 0, err
    whole, lars = json.loads(out)["rows"]
    assert (whole["name"], lars["name"]) == ("fcfs, whole prompts", "lars") and whole["ratio"] == 1
    assert lars["short_done"] == whole["short_done"] == 5 and lars["ratio"] > 1
    assert lars["short_ttft"][0] < whole["short_ttft"][0] and lars["alone"]["long_s"] > 1
    assert lars["alone"]["best_ttft_s"] == 1 and lars["alone"]["best_s"] == pytest.approx(1.3)
    assert lars["bound"] == pytest.approx(1.3 + 5 * lars["alone"]["short_s"])
    (done,) = lars["long_finish"]
    assert lars["over_best"] == pytest.approx(done / 1.3) and lars["over_bound"] == pytest.approx(done / lars["bound"])
    assert lars["alone_over_best"] == pytest.approx(lars["alone"]["long_s"] / 1.3)
    assert err.index("$ medha-jax generate") < err.index("$ medha-jax serve")
    assert "--no-chunk-preemption" in err and "the server is ready after" in err
    sent = {
        name: [json.loads(line) for line in (tmp_path / name / "requests.jsonl").read_text().splitlines()]
        for name in ("fcfs--whole-prompts", "lars")
    }
    asked = [[(one["kind"], one["due"], one["prompt_tokens"]) for one in lines] for lines in sent.values()]
    assert asked[0] == asked[1] and len(asked[0]) == 6


def test_a_convoy_on_a_server_that_is_there(capsys, completions):
    shape = ["--long-prompt", 300, "--shorts", 2, "--short-prompt", 5, "--short-output", 3, "--interval", 0.05]
    code, out, err = bench(capsys, "convoy", "--url", completions.url(), *shape)
    assert code == 0 and completions.url() in out, err
    assert "short TTFT P50" in out and "not known of a server that was there" in out and "1.00x" in out
    code, out, err = bench(capsys, "convoy", "--url", completions.url(), *shape, "--longs", 2, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0 and len(row["long_finish"]) == len(row["long_ttft"]) == 2, err
    assert row["bound"] is row["over_best"] is row["over_bound"] is row["alone"]["best_s"] is None


def test_ctrl_c_keeps_what_was_measured(simulated, tmp_path):
    endless = ["--workload", "random", "--output-tokens", "2000", "--rate", "5", "--duration", "600"]
    command = [*COMMAND, "bench", "serve", "--server", simulated.address, *endless]
    with (
        subprocess.Popen(
            [*command, "--out", str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        Client(simulated.address) as client,
    ):
        wait_until(lambda: client.load().running >= 3, 60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopping; what was measured so far is kept" in err, err
    assert "Overview" in out and "Traceback" not in err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 3 <= summary["requests"] < 2000 and summary["unfinished"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["serve", "--server", "a:1", "--url", "http://a"], "--server and --url given; give at most one"),
        (["serve", "--backend", "openai"], "--backend openai without --url"),
        (["serve", "--backend", "grpc", "--url", "http://a"], "--url is for --backend openai"),
        (["serve", "--url", "a:1"], "'a:1' is no address of a server; give one as in http://127.0.0.1:8000"),
        (["serve", "--served-model", "x"], "--served-model without --url"),
        (["serve", "--auth-token-file", "/x"], "--auth-token-file without --server or --url"),
        (["serve", "--server", "127.0.0.1:9"], "no answer from 127.0.0.1:9: UNAVAILABLE"),
        (["serve", "--server", "a:1", "--policy", "lars"], "--policy beside --server or --url, which has its own"),
        (["serve", "--server", "a:1", "--mesh", "tp=1", "--slots", "3"], "--mesh, --slots beside --server"),
        (["serve", "--workload", "x"], "there is no source 'x'; there are"),
        (["serve", "--workload", "prompts"], "source 'prompts' needs"),
        (["serve", "--scale", "1/0"], "'1/0' is no factor; give one above 0, as in 0.5 or 1/32"),
        (["serve", "--scale", "-1"], "'-1' is no factor"),
        (["serve", "--prompt-tokens", "10-5"], "most prompt tokens is 5; allowed are 10 to"),
        (["serve", "--prompt-tokens", "many"], "'many' is no number of tokens; give one, or two as in 100-2000"),
        (["serve", "--rate", "-1"], "rate is -1.0; allowed are"),
        (["serve", "--rate", "nan"], "'--rate': nan is out of range; allowed is a number"),
        (["serve", "--arrivals", "ramp"], "an end rate and the process 'ramp' belong together"),
        (["serve", "--burstiness", "2"], "burstiness belongs to the process 'gamma'"),
        (["serve", "--cancel-rate", "1.5"], "'--cancel-rate'"),
        (["serve", "--repeat", "0"], "'--repeat'"),
        (["serve", "--timeout", "inf"], "--timeout is inf; it must be finite"),
        (["serve", "--deadline", "length-aware", "--slo-ttft-ms", "5"], "--deadline and --slo-ttft-ms given"),
        (["serve", "--deadline", "soon"], "'--deadline'"),
        (["serve", "--mesh", "nowhere"], "cannot read layout 'nowhere'"),
        (["convoy", "--policies", "best"], "'best' is no policy; give some of fcfs-whole,fcfs,srtf,edf,lrs,lars,red"),
        (["convoy", "--policies", "lars,lars"], "'lars' is named twice"),
        (["convoy", "--server", "a:1", "--policies", "lars"], "--policies beside --server"),
        (["convoy", "--long-prompt", "0"], "'--long-prompt'"),
        (["convoy", "--long-prompt", "300000"], "300,000 + 16 tokens are more than the context of 131,072"),
        (["search", "--start-rate", "0"], "'--start-rate'"),
        (["search", "--attainment", "2"], "'--attainment'"),
        (["engine", "--chunks", "0"], "'0' is no number from 1; give some as in 64,1024"),
        (["engine", "--chunks", "4096"], f"(4096,); allowed are 2 to {LARGEST} tokens in this layout"),
        (["engine", "--batches", "33"], "batches are (33,); allowed are 1 to 32 in this layout"),
        (["engine", "--contexts", "10000000"], "is more than the model's context"),
        (["engine", "--model", "/nowhere"], "/nowhere does not exist; give tiny"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(capsys, arguments, message):
    code, out, err = bench(capsys, *arguments)
    assert code in (1, 2) and out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], err
    assert err.splitlines() == errors


def test_help_is_quick_and_needs_no_jax(environment):
    script = (
        "import sys\nfrom medha_jax.cli import run\nrun(['bench', 'serve', '--help'])\n"
        "sys.exit(bool({'jax', 'numpy', 'aiohttp', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--slo-ttft-ms" in done.stdout, done.stderr
