"""The suite's options, which tests run for which backend, what they share, and the report.

pytest tests/conformance                              # every backend that can run here
pytest tests/conformance --backend transformers       # one of them; an error where it cannot run
pytest tests/conformance --conformance-report FILE    # what passed goes into FILE, beside what other machines found out
pytest tests/conformance --conformance-model FOLDER   # answers of this model are compared, not of one made for the test
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conformance_record
import pytest
from _pytest.compat import NOTSET
from conformance_cases import VARIANTS, Case, Model, case_of, here, why_not_here
from conformance_checks import Asked
from conformance_driving import Driven
from conformance_worker import Worker

from llmgallery.backends.base import Files
from llmgallery.backends.loader import canonical, specs

PROPERTY = "conformance"
FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--backend", action="append", default=[], metavar="NAME", help="only this backend; may be given again")
    group.addoption("--conformance-report", metavar="FILE", type=Path, help="write what each backend passed into this JSON file")
    group.addoption("--conformance-model", metavar="FOLDER", type=Path, help="a model to compare answers of")


def pytest_configure(config: pytest.Config) -> None:
    for name in config.getoption("backend", default=[]):
        if canonical(name) is None:
            raise pytest.UsageError(f"there is no backend {name}: {', '.join(specs())}")
        if why := why_not_here(canonical(name) or name):
            raise pytest.UsageError(why)


def pytest_report_header(config: pytest.Config) -> list[str]:
    absent = [f"conformance: not here: {why}" for name in specs() if (why := why_not_here(name))]
    return [f"conformance: {', '.join(chosen(config))}", *absent]


def chosen(config: pytest.Config) -> list[str]:
    asked = [canonical(name) for name in config.getoption("backend", default=[])]
    return [name for name in here() if not asked or name in asked]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked: Asked | None = getattr(metafunc.function, "asked", None)
    if asked is not None:
        wanted = [name for name in chosen(metafunc.config) if asked.wanted_of(specs()[name])]
        variants = {name: ["", *(VARIANTS.get(name, ()) if asked.varies else ())] for name in wanted}
        params = {"-".join(filter(None, (name, each))): (name, each) for name in wanted for each in variants[name]}
        metafunc.parametrize("case", params.values(), ids=params, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that is for none of the backends is none: pytest would skip it. Who asks for a backend, or for a report, does not
    ask for tests of the suite itself."""
    only_checks = bool(config.getoption("backend", default=[]) or config.getoption("conformance_report", default=None))
    items[:] = [item for item in items if FOLDER not in item.path.parents or _is_wanted(item, only_checks)]


def _is_wanted(item: pytest.Item, only_checks: bool) -> bool:
    if NOTSET in getattr(getattr(item, "callspec", None), "params", {}).values():
        return False
    return not only_checks or hasattr(getattr(item, "function", None), "asked")


# --- the report --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """What the test shows travels with its report: it may run in another process than the one that writes."""
    asked: Asked | None = getattr(request.function, "asked", None)
    if asked is not None:
        name, _ = request.node.callspec.params["case"]
        record_property(PROPERTY, [name, asked.name, asked.lacking, case_of(name).device()])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for key, value in report.user_properties:
        if key == PROPERTY and (report.when == "call" or report.failed):
            conformance_record.note(*value, outcome=report.outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("conformance_report", default=None)
    if target is not None and not hasattr(session.config, "workerinput"):
        conformance_record.write(target)


# --- what tests share --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    name, variant = request.param
    return case_of(name).of_variant(variant)


@pytest.fixture(scope="session")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the case's models are made; one for each case."""
    made = tmp_path_factory.getbasetemp() / f"conformance-{case.name}"
    made.mkdir(exist_ok=True)
    return made


@pytest.fixture(scope="session")
def model(case: Case, folder: Path, pytestconfig: pytest.Config) -> Callable[..., Model]:
    """The case's model that has a capability."""
    given: Path | None = pytestconfig.getoption("conformance_model", default=None)

    def get(capability: str = "generate") -> Model:
        made = case.model(capability, folder)
        files = Files((given,)) if given is not None and capability == "generate" else made.files
        return Model(files, {**made.keys, **case.keys})

    return get


@pytest.fixture(scope="session")
def drive(case: Case, model: Callable[..., Model]) -> Iterator[Callable[..., Driven]]:
    """The case's backend, with its model of a capability, and these of the YAML's keys; loaded once."""
    loaded: dict[tuple[Any, ...], Driven] = {}

    def get(capability: str = "generate", **keys: Any) -> Driven:
        key = (capability, *sorted(keys.items()))
        if key not in loaded:
            loaded[key] = Driven(case, model(capability), **keys)
        return loaded[key]

    yield get
    for driven in loaded.values():
        driven.close()


@pytest.fixture(scope="session")
def driven(drive: Callable[..., Driven]) -> Driven:
    """The case's backend with the model that answers."""
    return drive()


@pytest.fixture(scope="session")
def worker(case: Case, model: Callable[..., Model]) -> Iterator[Worker]:
    """The same in a process of its own, as the server has it."""
    with Worker(case, model()) as started:
        yield started
