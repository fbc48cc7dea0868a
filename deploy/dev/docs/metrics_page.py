"""Generate `docs/metrics.md` from `agent/telemetry/metrics.py`.

The generator scrapes a new `Metrics` object. Such a scrape contains every series, because a series exists before its
first event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client import Metric

HEAD = """# Metrics

This page is generated from [`agent/telemetry/metrics.py`](../agent/telemetry/metrics.py) by `make docs`.
[Observability](observability.md) explains phases, alerts and the dashboard.

- The agent serves all metrics at `/metrics`.
- Every series exists from the first scrape, so `rate()` and alerts work at once.
- Label values come from short fixed lists, which the second table shows. No label holds an id.
- The settings [`metrics.*_buckets`](settings.md#metrics) are the buckets of the histograms.

| metric | type | labels | description |
|---|---|---|---|
"""
LABELS = """
## Label values

| metric | label | values |
|---|---|---|
"""
# Metrics with a label whose values cannot be listed, because they depend on the build of the agent.
OPEN = frozenset({"sealci_agent_build_info"})


def text() -> str:
    """Return the text of `docs/metrics.md`."""
    families = list(text_string_to_metric_families(Metrics().text().decode()))
    rows = [f"| `{full_name(each)}` | {each.type} | {names(each)} | {each.documentation} |\n" for each in families]
    values = [
        f"| `{full_name(family)}` | `{label}` | {', '.join(known)} |\n"
        for family in families
        if family.name not in OPEN
        for label, known in label_values(family).items()
    ]
    return HEAD + "".join(rows) + LABELS + "".join(values)


def full_name(family: Metric) -> str:
    """Return a metric's name as queries use it. The full name of a counter ends in `_total`."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def names(family: Metric) -> str:
    """Return the label names of a metric as Markdown, without the histogram label `le`."""
    return ", ".join(f"`{label}`" for label in label_values(family))


def label_values(family: Metric) -> dict[str, list[str]]:
    """Return the values of each label of a metric as Markdown.

    The label `le` is left out, because the buckets of histograms are settings.
    """
    found: dict[str, list[str]] = {}
    for sample in family.samples:
        for label, value in sorted(sample.labels.items()):
            shown = f"`{value}`" if value else "empty"
            if label != "le" and shown not in found.setdefault(label, []):
                found[label].append(shown)
    return {label: known for label, known in found.items() if known}
