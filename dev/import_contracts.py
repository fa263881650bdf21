"""import-linter contracts for modules that are matched by a part of their name. See pyproject.toml."""

from fnmatch import fnmatchcase

from importlinter import Contract, ContractCheck, fields, output
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.domain.imports import ModuleExpression


class OwnedByNameContract(Contract):
    """In the package, `orders` and `orders_models` may import each other; `users` may import neither.

    shared: the modules that all of them may import.
    """

    package = fields.StringField()
    shared = fields.SetField(subfield=fields.StringField())

    def check(self, graph, verbose):
        modules = graph.find_matching_modules(f"{self.package}.**")

        def owner(module):
            return min((each for each in modules if f"{module}_".startswith(f"{each}_")), key=len)

        imports = graph.find_matching_direct_imports(f"{self.package}.** -> {self.package}.**")
        found = [(each["importer"], each["imported"]) for each in imports]
        foreign = sorted(pair for pair in found if pair[1] not in self.shared and owner(pair[0]) != owner(pair[1]))
        return ContractCheck(kept=not foreign, metadata={"foreign": foreign})

    def render_broken_contract(self, check):
        for importer, imported in check.metadata["foreign"]:
            output.print_error(f"{importer} is not allowed to import {imported}")
        output.new_line()


class ForbiddenByPatternContract(ForbiddenContract):
    """import-linter's `forbidden`, whose source modules may be patterns like `services.*_models`."""

    source_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph, verbose):
        patterns = self.source_modules
        self.source_modules = {
            ModuleExpression(module) for module in graph.modules if any(fnmatchcase(module, each) for each in patterns)
        }
        return super().check(graph, verbose)
