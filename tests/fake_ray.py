"""Ray in this process: what goes through it can be looked at, and blocks can be handed out wrongly."""

from __future__ import annotations

import os
import pickle
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace


@dataclass
class FakeRay:
    """`order` changes the rows that are handed out. `passed` is everything that went to workers or came from them,
    `tokens` what stood in the environment when Ray was started."""

    order: object = list
    passed: list[bytes] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def install(self, monkeypatch):
        ray, data, exceptions = (ModuleType(name) for name in ("ray", "ray.data", "ray.exceptions"))
        for module in (ray, data, exceptions):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        context = SimpleNamespace(execution_options=SimpleNamespace())
        data.DataContext = SimpleNamespace(get_current=lambda: context)
        data.from_items = lambda rows, override_num_blocks: _Rows(self, rows)
        exceptions.RayError = type("RayError", (Exception,), {})
        ray.data, ray.exceptions = data, exceptions
        ray.init, ray.shutdown = (lambda **_: self.tokens.append(os.environ.get("RAY_AUTH_TOKEN"))), (lambda: None)
        ray.cluster_resources = lambda: {"CPU": 2.0}
        ray.remote = lambda **_: lambda function: SimpleNamespace(remote=lambda *args: self._called(function, args))
        ray.get = lambda value: value
        return self

    def _called(self, function, args):
        self.passed.append(pickle.dumps(args))
        self.passed.append(function(*args))
        return self.passed[-1]


@dataclass
class _Rows:
    fake: FakeRay
    rows: list

    def map(self, worker, *, fn_constructor_args, concurrency, **resources):
        self.fake.passed.append(pickle.dumps(fn_constructor_args))
        work = worker(*fn_constructor_args)

        def answered(row):
            found = work(row)
            self.fake.passed += [pickle.dumps(row), found["found"]]
            return found

        return SimpleNamespace(iter_rows=lambda: map(answered, self.fake.order(self.rows)))
