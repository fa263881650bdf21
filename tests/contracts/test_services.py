"""`nameko run` starts every class with entrypoints in a module: only one may be visible."""

import pkgutil

import pytest
from nameko.cli.run import import_service
from nameko.exceptions import CommandError

import services
from contracts.types import SERVICES

BESIDE = sorted({module.name for module in pkgutil.iter_modules(services.__path__)} - set(SERVICES))


@pytest.mark.parametrize("service", SERVICES)
def test_the_module_of_a_service_exposes_only_its_own_class(service):
    classes = import_service(f"services.{service}")

    assert [each.name for each in classes] == [service]


@pytest.mark.parametrize("module", BESIDE)
def test_other_modules_of_a_service_expose_no_class_with_entrypoints(module):
    with pytest.raises(CommandError, match="anything that looks like a service"):
        import_service(f"services.{module}")
