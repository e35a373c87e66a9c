"""Go's and sprig's functions against Go's own: same text out, or the same message. And what they may cost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_goldens import cases
from test_go_language import build

from llmgallery.core.errors import TemplateError
from llmgallery.templates.gotmpl import compile_go
from llmgallery.templates.gotmpl.budget import Limits, guarding
from llmgallery.templates.gotmpl.builtins import FUNCTIONS, REFUSED
from llmgallery.templates.gotmpl.clock import Time
from llmgallery.templates.gotmpl.printing import plain, text
from llmgallery.templates.gotmpl.values import Byte, Field, GoError, Int64, Struct, TypedDict, TypedList, TypedNil

HERE = Path(__file__).parent
CASES = {case["name"]: case for case in cases(HERE / "functions.toml")}
GOLDEN: dict[str, Any] = json.loads((HERE / "functions.json").read_text("utf-8"))["results"]
# Where Go's message is one of its reflect package, about nothing that a reader of the template knows.
OURS = {
    "error calling len: reflect: call of reflect.Value.Type on zero Value": "error calling len: len of untyped nil",
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The goldens were made where the local time is UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def outcome(template: str, data: Any) -> str:
    try:
        return compile_go(template, "prompt").render(data)
    except TemplateError as error:
        return "error: " + error.message.partition(": ")[2]


def expected(golden: dict[str, Any]) -> str:
    if "output" in golden:
        return str(golden["output"])
    placed = re.match(r'template: prompt:\d+:\d+: executing "prompt" at <.*?>: (.*)$', golden["error"], re.DOTALL)
    assert placed is not None, golden["error"]
    return "error: " + OURS.get(placed[1], placed[1])


@pytest.mark.parametrize("name", CASES)
def test_a_call_does_what_go_does(name: str) -> None:
    case = CASES[name]
    wanted = expected(GOLDEN[name])
    got = outcome(case["template"], build(case["data"]))
    if wanted.startswith("error: "):
        # Behind Go's message ours may say more.
        assert got == wanted or got.startswith(wanted + ": ")
    else:
        assert got == wanted


def test_the_goldens_name_their_maker() -> None:
    made_by = json.loads((HERE / "functions.json").read_text("utf-8"))["made_by"]
    assert re.search(r"go1\.\d+\.\d+, with sprig \d", made_by)
    assert len(GOLDEN) >= 250


def render(template: str, data: Any = None) -> str:
    return compile_go(template).render(data or {})


# sprig 3.3 has these otherwise than the 3.2 that made the goldens; the samples are from its libraries' documentation.
@pytest.mark.parametrize(
    ("call", "result"),
    [
        ('camelcase "some_words"', "SomeWords"),
        ('camelcase "no_https"', "NoHttps"),
        ('camelcase "_complex__case_"', "_Complex_Case_"),
        ('camelcase "some words"', "SomeWords"),
        ('camelcase "GOLANG_IS_GREAT"', "GolangIsGreat"),
        ('sha512sum "" | trunc 16', "cf83e1357eefb8bd"),
        ('durationRound "2400h10m5s"', "3mo"),
    ],
)
def test_what_the_newer_sprig_does(call: str, result: str) -> None:
    assert render("{{" + call + "}}") == result


# Go 1.27 words these anew; so they were for ten years before.
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("[1.x]", "invalid character 'x' after decimal point in numeric literal"),
        ("1e+", "unexpected end of JSON input"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("-x", "invalid character 'x' in numeric literal"),
        (r'"\x"', "invalid character 'x' in string escape code"),
        (r'"\u12g4"', "invalid character 'g' in \\u hexadecimal character escape"),
        ('"a\nb"', r"invalid character '\n' in string literal"),
        ("[tru]", "invalid character ']' in literal true (expecting 'e')"),
        ("[{}, {'a': 1}]", "invalid character '\\'' looking for beginning of object key string"),
    ],
)
def test_what_is_no_json_is_told_in_go_s_words(source: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{mustFromJson .x}}", {"x": source})
    assert caught.value.message.endswith("error calling mustFromJson: " + message)
    assert render("{{fromJson .x}}", {"x": source}) == "<no value>"


def test_half_a_character_is_a_replacement_character() -> None:
    assert render('{{ trunc 4 "aé世" }}') == "aé\ufffd"
    assert render('{{ trunc -1 "世" }}{{ substr 0 2 "世" }}') == "\ufffd" * 3


def test_all_of_sprig_is_known() -> None:
    named = (
        "abbrev b64dec b32dec bcrypt buildCustomCert camelcase coalesce date_in_zone deepCopy derivePassword dig ext encryptAES "
    )
    named += (
        "expandenv genCA genSignedCertWithKey getHostByName hello htpasswd kindIs mustRegexSplit mustToRawJson must_date_modify "
    )
    named += "osIsAbs randBytes semverCompare sha512sum toDecimal trimall tuple untilStep urlJoin uuidv4 wrapWith adler32sum"
    assert [name for name in named.split() if name not in FUNCTIONS and name not in REFUSED] == []
    assert not set(FUNCTIONS) & set(REFUSED)


@pytest.mark.parametrize(("name", "why"), [("env", "outside"), ("genPrivateKey", "keys"), ("semver", "version")])
def test_what_a_prompt_has_no_business_with_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(TemplateError, match=f'"{name}".*{why}'):
        compile_go("{{" + name + ' "x"}}')


def test_random_texts_are_of_the_length_and_kind_that_was_asked() -> None:
    assert re.fullmatch(r"[a-zA-Z]{20}", render("{{randAlpha 20}}"))
    assert re.fullmatch(
        r"[0-9]{20}\|[ -~]{20}\|[a-zA-Z0-9]{20}", render("{{randNumeric 20}}|{{randAscii 20}}|{{randAlphaNum 20}}")
    )
    assert re.fullmatch(r"[0-9a-f-]{36}", render("{{uuidv4}}"))
    assert sorted(render('{{shuffle "hello"}}')) == sorted("hello")
    assert render("{{randInt 3 4}}") == "3"
    assert render("{{len (randBytes 6)}}") == "8"


def test_now_is_now() -> None:
    before = int(time.time())
    assert before <= int(render("{{unixEpoch now}}")) <= before + 60
    assert render("{{ago now}}{{now.IsZero}}") == "0sfalse"


def test_dates_without_a_zone_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    summer = '(toDate "2006-01-02 15:04" "2024-07-01 12:00")'
    assert render("{{" + summer + "}}") == "2024-07-01 12:00:00 +0200 CEST"
    assert render('{{dateInZone "15:04" ' + summer + ' "UTC"}}{{date " 15:04 MST" 0}}') == "10:00 01:00 CET"


@pytest.mark.parametrize(
    "template",
    [
        '{{repeat 1000000000 "abc"}}',
        '{{indent 100000000 "a"}}',
        '{{nindent 9000000 "a\\nb"}}',
        "{{until 1000000000}}",
        "{{untilStep 0 1000000000000 1}}",
        "{{seq 1 1000000000}}",
        "{{range until 100}}{{seq 1 100000}}{{end}}",
        "{{range until 100}}{{range until 100}}{{printf `%1000000d` 1}}{{end}}{{end}}",
        "{{range until 100}}{{range until 100}}{{printf `%.1000000f` 1.0}}{{end}}{{end}}",
        "{{$x := `aaaaaaaaaa`}}{{range until 30}}{{$x = replace `a` `aaaaaaaaaa` $x}}{{end}}",
        "{{$x := `a`}}{{range until 40}}{{$x = print $x $x}}{{end}}",
        "{{$x := `\\\\`}}{{range until 40}}{{$x = quote $x}}{{end}}",
        "{{$x := `<`}}{{range until 40}}{{$x = html $x $x}}{{end}}",
        "{{$x := list 1}}{{range until 40}}{{$x = list $x $x}}{{end}}{{$x}}",
        "{{$x := list 1}}{{range until 40}}{{$x = list $x $x}}{{end}}{{toJson $x}}",
        "{{$x := list 1}}{{range until 40}}{{$x = list $x $x}}{{end}}{{$y := deepCopy $x}}",
        "{{$x := list 1}}{{range until 40}}{{$x = list $x $x}}{{end}}{{deepEqual $x $x}}",
        "{{$x := list 1}}{{range until 40}}{{$x = list $x $x}}{{end}}{{join `,` $x}}",
        "{{$x := list 1}}{{range until 40}}{{$x = concat $x $x}}{{end}}",
        "{{$x := dict}}{{$_ := set $x `a` $x}}{{$x}}",
        "{{$x := dict}}{{$_ := set $x `a` $x}}{{toPrettyJson $x}}",
        "{{$x := dict}}{{$_ := set $x `a` $x}}{{merge $x (deepCopy $x)}}",
        "{{$x := dict}}{{$_ := set $x `a` $x}}{{printf `%d` $x}}",
        "{{uniq (until 100000)}}",
        "{{regexMatch `(x+x+)+y` (repeat 100000 `x`)}}{{regexReplaceAll `(.*)*b|a` (repeat 10000 `a`) `$1`}}",
        "{{range until 500}}{{regexFind (printf `((a?){30}){30}%d` .) (repeat 2000 `a`)}}{{end}}",
        "{{fromJson (repeat 100000 `[`)}}{{mustFromJson (repeat 100000 `[`)}}",
        "{{randAscii 1000000000}}",
        "{{wrap 1 (repeat 4000000 `a `) | wrapWith 1 `-----` }}",
    ],
)
def test_what_amplifies_is_bounded(template: str) -> None:
    began = time.monotonic()
    with pytest.raises(TemplateError):
        compile_go(template).render({}, Limits(steps=200_000))
    assert time.monotonic() - began < 5


TOOL = Struct("main.Tool", (Field("Name", "x", "name"), Field("Rest", TypedNil("map[string]string"), None, True)))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.integers(-5, 5),
    st.integers(-9, 9).map(Int64),
    st.integers(0, 255).map(Byte),
    st.floats(),
    st.text(max_size=6),
    st.text(alphabet="%()[]{}*+?|\\^$-.,:0123456789abcdpqvxXsTUZ #\"'/", max_size=10),
    st.sampled_from(
        [
            "2006-01-02 15:04:05.000 MST -07:00",
            "Jan _2 06 3PM",
            "2024-02-30",
            "UTC",
            "Asia/Tokyo",
            "1h2.5m",
            "a",
            "[[:alpha:]]",
            "",
        ]
    ),
    st.sampled_from([TypedNil("map[string]interface {}"), TypedNil("[]string"), TypedNil("*main.Tool"), TOOL, Time(1 << 60), 1j]),
    st.integers(-(1 << 70), 1 << 70).map(Time),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(TypedList),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2).map(TypedDict),
    ),
    max_leaves=8,
)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "string": st.one_of(st.text(max_size=8), SCALARS.filter(lambda value: isinstance(value, str))),
    "int": st.integers(-12, 12) | st.integers(-(1 << 63), (1 << 63) - 1),
    "bool": st.booleans(),
    "float64": st.floats(),
    "map[string]interface {}": st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3) | st.none(),
    "time.Time": st.integers(-(1 << 70), 1 << 70).map(Time),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A function and arguments, of types that fit nearly always."""
    function = FUNCTIONS[draw(st.sampled_from(sorted(FUNCTIONS)))]
    count = len(function.params) + (draw(st.integers(-1, 2)) if function.variadic else 0)
    wanted = [function.parameter(index) or "" for index in range(count)]
    odd = draw(st.integers(0, 9)) == 0
    return function.name, [draw(VALUES if odd else FITTING.get(each, VALUES)) for each in wanted]


def try_call(name: str, args: list[Any]) -> None:
    with guarding(Limits(steps=20_000, chars=100_000, seconds=60)):
        try:
            result = FUNCTIONS[name](*args)
            assert isinstance(text(result), str)
            assert isinstance(plain(result), str)
        except (GoError, TemplateError):
            pass


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_no_call_fails_but_cleanly(call: tuple[str, list[Any]]) -> None:
    try_call(*call)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(calls())
def test_no_call_of_very_many_fails_but_cleanly(call: tuple[str, list[Any]]) -> None:
    try_call(*call)
