"""The metrics of tenants: which series there are, and what they count."""

from prometheus_client import generate_latest

from medha_jax.engine import TenantLoad
from medha_jax.server.access_log import Record
from medha_jax.server.prometheus import Metrics


def ended(tenant, accepted=True):
    return Record("Generate", "peer", tenant, prompt_tokens=7, cached_tokens=4, output_tokens=3, accepted=accepted)


def series(metrics):
    """The series of tenants: labels and names with their values, zeros left out."""
    lines = [line.rsplit(" ", 1) for line in generate_latest(metrics.registry).decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("medha_tenant_"): float(value) for name, value in lines if "tenant_" in name}


def test_each_tenant_of_the_file_is_counted():
    metrics, names = Metrics(lambda: {"a", "b"}), ("a", "b")
    for tenant in names:
        metrics.accepted(tenant)
    metrics.refused("RESOURCE_EXHAUSTED", "a")
    metrics.ended(ended("a"))
    metrics.ended(ended("b", accepted=False))
    metrics.ended(ended("b", accepted=None))
    found = series(metrics)
    assert {key for key in found if 'tenant="b"' in key} == {
        f'{name}{{tenant="b"}}'
        for name in (
            "requests_accepted_total",
            "prompt_tokens_total",
            "cached_prompt_tokens_total",
            "generation_tokens_total",
            "num_requests_running",
            "num_requests_waiting",
            "num_tokens_waiting",
        )
    }
    assert {key: value for key, value in found.items() if value} == {
        'requests_accepted_total{tenant="a"}': 1,
        'requests_accepted_total{tenant="b"}': 1,
        'requests_refused_total{reason="RESOURCE_EXHAUSTED",tenant="a"}': 1,
        'prompt_tokens_total{tenant="a"}': 7,
        'cached_prompt_tokens_total{tenant="a"}': 4,
        'generation_tokens_total{tenant="a"}': 3,
    }
    metrics._tenants.watch(lambda: {"a": TenantLoad(1, 2, 300), "gone": TenantLoad(1, 0, 0)})
    found = series(metrics)
    gauges = ("requests_running", "requests_waiting", "tokens_waiting")
    assert [found[f'num_{name}{{tenant="a"}}'] for name in gauges] == [1, 2, 300]
    assert not any("gone" in key for key in found)


def test_a_name_that_left_takes_its_series_along_and_begins_anew():
    names = {"a", "b"}
    metrics = Metrics(lambda: names)
    metrics.accepted("b")
    names = {"a"}
    metrics.accepted("b")  # of a call that began before
    assert {key.split('"')[1] for key in series(metrics)} == {"a"}
    names = {"a", "b"}
    assert series(metrics)['requests_accepted_total{tenant="b"}'] == 0
    for number in range(1000):
        names = {f"name-{number}"}
        metrics.accepted(f"name-{number}")
    assert len(metrics._tenants._counts) == 1, "without a look at the metrics, too"


def test_without_names_there_are_no_series_of_tenants():
    metrics = Metrics()
    metrics.accepted("")
    metrics.refused("UNAVAILABLE", "")
    metrics.ended(ended(""))
    assert not series(metrics)
