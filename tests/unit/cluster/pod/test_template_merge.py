"""The merge of the installer's pod template over the agent's pod."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.cluster.pod.template_merge import merge

MOUNT = {"name": "workspace", "mountPath": "/workspace"}


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": 2, "b": 3}, {"a": 2, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {}}),
        ({"a": [1]}, {"a": [2]}, {"a": [1, 2]}),
        ({"a": [1]}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": []}, {"a": [{"name": "x"}]}, {"a": [{"name": "x"}]}),
        ({"t": [{"key": "gpu"}]}, {"t": [{"key": "spot"}]}, {"t": [{"key": "gpu"}, {"key": "spot"}]}),
    ],
)
def test_mappings_and_plain_lists(base: Any, over: Any, expected: Any) -> None:
    assert merge(base, over) == expected


def test_containers_merge_by_name_and_keep_their_order() -> None:
    base = [{"name": "helper"}, {"name": "action", "image": "x", "env": [{"name": "CI", "value": "true"}]}]
    over = [{"name": "proxy"}, {"name": "action", "env": [{"name": "CI", "value": "no"}, {"name": "A", "value": "1"}]}]
    assert merge(base, over) == [
        {"name": "helper"},
        {"name": "action", "image": "x", "env": [{"name": "CI", "value": "no"}, {"name": "A", "value": "1"}]},
        {"name": "proxy"},
    ]


def test_one_volume_can_be_mounted_at_several_paths() -> None:
    over = [
        {"name": "workspace", "mountPath": "/cache", "subPath": "c"},
        {"name": "workspace", "mountPath": "/opt", "subPath": "o"},
        {"name": "workspace", "mountPath": "/workspace", "readOnly": True},
    ]
    assert merge([MOUNT], over) == [MOUNT | {"readOnly": True}, *over[:2]]


def test_neither_side_is_changed() -> None:
    base: Any = {"a": [{"name": "x", "b": {"c": 1}}], "d": {"e": 1}}
    over: Any = {"a": [{"name": "x", "b": {"c": None}}], "d": {"f": 2}}
    kept = copy.deepcopy((base, over))
    merge(base, over)
    assert (base, over) == kept
