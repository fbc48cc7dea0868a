"""The key `cache` of a pipeline file, keys with placeholders, and the scopes of the local scheduler."""

from __future__ import annotations

import pytest

from agent.domain.actions import Action, ArtifactRules, Cache, CacheScope, Key, Repository, When
from agent.domain.errors import ActionFailed
from agent.domain.references.cache_key import check_template, filled_in, hashes_in
from agent.execution.admission_checks import cache_problems
from agent.pipeline import parser
from agent.pipeline.cache_keys import cache_scope
from agent.pipeline.file_errors import PipelineFileError
from agent.protocol import translate

URL = "https://git.example/r"


def parse(cache: str) -> tuple[Cache, ...]:
    text = f"configuration: {{container: debian}}\ncommands: [make]\ncache: {cache}\n"
    return parser.parse(text, "p.yaml").actions[0].caches


def test_a_cache_is_read_and_travels_to_the_agent() -> None:
    caches = parse(
        "[{key: 'pip-{arch}-{hash:req*.txt,a.lock}', paths: [.cache/pip/, b], fallbacks: ['pip-{arch}'],"
        " prefix: pip-, save: always}, {key: k, paths: [c]}]"
    )
    assert caches == (
        Cache("pip-{arch}-{hash:req*.txt,a.lock}", (".cache/pip", "b"), ("pip-{arch}",), "pip-", When.ALWAYS),
        Cache("k", ("c",)),
    )
    sent = Action(Key("a"), "debian", ("make",), caches=caches, cache_scope=CacheScope("w", ("w", "r")))
    assert translate.action(translate.action_message(sent)) == sent
    assert list(cache_problems(sent)) == []


def test_a_key_has_the_values_of_the_matrix() -> None:
    text = "actions: {a: {matrix: {V: [1, 2]}, configuration: {container: i}, commands: [x], "
    text += "cache: [{key: 'k-${V}', paths: ['p${V}']}]}}"
    assert [each.caches for each in parser.parse(text, "p.yaml").actions] == [
        (Cache("k-1", ("p1",)),),
        (Cache("k-2", ("p2",)),),
    ]


@pytest.mark.parametrize(
    ("cache", "why"),
    [
        ("[{paths: [a]}]", "`key` is missing"),
        ("[{key: a}]", "`paths` is missing"),
        ("[{key: a, paths: []}]", "at least one path"),
        ("[{key: a, paths: [/root/.cache]}]", "a path within the workspace"),
        ("[{key: a, paths: [../x]}]", "a path within the workspace"),
        ("[{key: a, paths: [.]}]", "a path within the workspace"),
        ("[{key: a, paths: ['x/*']}]", "without wildcards"),
        ("[{key: a, paths: [.git/hooks]}]", "must not be in .git"),
        ("[{key: a, paths: [b]}, {key: c, paths: [b]}]", "names b twice"),
        ("[{key: 'a{user}', paths: [b]}]", "{user} is no placeholder"),
        ("[{key: 'a{hash:}', paths: [b]}]", "{hash:} is no placeholder"),
        ("[{key: 'a{hash:../x}', paths: [b]}]", "outside the workspace"),
        ("[{key: 'a{', paths: [b]}]", "besides placeholders"),
        ("[{key: 'a%2e', paths: [b]}]", "besides placeholders"),
        (f"[{{key: {'a' * 501}, paths: [b]}}]", "at most 500 characters"),
        ("[{key: a, paths: [b], save: failure}]", "must be one of success, always, never"),
        (f"[{', '.join(f'{{key: a, paths: [b{n}]}}' for n in range(6))}]", "at most 5"),
        (f"[{{key: a, paths: [{', '.join(f'p{n}' for n in range(21))}]}}]", "at most 20"),
        (f"[{{key: a, paths: [p], fallbacks: [{', '.join('kkkkkkkkkkkkkkkkkkkkk')}]}}]", "at most 20"),
    ],
)
def test_a_wrong_cache_is_refused(cache: str, why: str) -> None:
    with pytest.raises(PipelineFileError) as failure:
        parse(cache)
    assert why in str(failure.value)


def test_an_agent_checks_the_caches_of_any_scheduler() -> None:
    bad = Action(Key("a"), "debian", ("x",), caches=(Cache("{x}", ("/etc",), ("",), "a" * 501), Cache("k", ())))
    assert [problem.partition(":")[0] for problem in cache_problems(bad)] == [
        "caches[1].key",
        "caches[1].paths",
        "caches[1].fallback_keys",
        "caches[1].prefix",
        "caches[2].paths",
    ]
    many = Action(Key("a"), "debian", ("x",), caches=(Cache("k", ("a",)),) * 1000)
    assert len(list(cache_problems(many))) == 1


@pytest.mark.parametrize("scope", [CacheScope("w", ()), CacheScope("w", ("r", "w")), CacheScope("", ("r",) * 11)])
def test_a_scope_that_reads_another_name_first_is_refused(scope: CacheScope) -> None:
    sent = Action(Key("a"), "debian", ("make",), cache_scope=scope)
    with pytest.raises(ActionFailed, match="cache_scope"):
        translate.action(translate.action_message(sent))


def test_placeholders_are_filled_in() -> None:
    template = "{arch} {hash:a,b}-{hash:c}"
    check_template(template)
    assert hashes_in(template) == ["hash:a,b", "hash:c"]
    assert filled_in(template, {"arch": "x", "hash:a,b": "1", "hash:c": "{arch}"}) == "x 1-{arch}"
    with pytest.raises(ValueError, match="at most 200"):
        filled_in("{arch}", {"arch": "x" * 201})


def test_a_branch_reads_main_and_writes_for_itself() -> None:
    main = cache_scope(Repository(URL), "p")
    assert main.read == (main.write,)
    for ref in ("main", "master", "refs/heads/main", "HEAD"):
        assert cache_scope(Repository(URL, ref), "other") == main
    written = {main.write}
    for ref in ("feature/x", "refs/pull/12/merge", "v1", "main/x"):
        scope = cache_scope(Repository(URL, ref), "p")
        assert scope.read == (scope.write, main.write)
        written.add(scope.write)
    written |= {cache_scope(Repository(f"{URL}2"), "p").write, cache_scope(None, "p").write}
    written |= {cache_scope(None, "q").write, cache_scope(None, URL).write}
    assert len(written) == 9
    assert cache_scope(Repository(URL, "refs/heads/x"), "p") == cache_scope(Repository(URL, "x"), "p")


def test_caches_are_no_artifacts_by_default() -> None:
    cached = Action(Key("a"), "debian", ("x",), caches=(Cache("k", ("a", "b")),))
    assert cached.collected == ArtifactRules(exclude=("a", "b"))
    declared = Action(Key("a"), "i", ("x",), artifacts=ArtifactRules(("a/**",)), caches=cached.caches)
    assert declared.collected == ArtifactRules(("a/**",))
