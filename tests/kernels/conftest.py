"""Which code generator makes the kernels that tests run; see ``printed``."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from printed import CODEGENS, through

from effc.errors import UnsupportedError


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests marked ``printed`` run once per code generator."""
    marked = metafunc.definition.get_closest_marker("printed") is not None
    if marked and metafunc.config.getoption("--codegen") is None:
        metafunc.parametrize("codegen", CODEGENS, indirect=True)


@pytest.fixture(autouse=True)
def codegen(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes the code of a test's kernels."""
    chosen = request.config.getoption("--codegen")
    with through(getattr(request, "param", chosen or "llvm")):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """With ``--codegen``, skip kernels that C has no means for, by the printer's own words."""
    try:
        return (yield)
    except UnsupportedError as error:
        if item.config.getoption("--codegen") is None or "portable C" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])
