"""Shared by all tests.

hypothesis is imported here, at once: its plugin would import it at the very end otherwise, and CPython 3.11
can fail to parse a module while finalizers of event loops run ("AST constructor recursion depth mismatch").
"""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("default", deadline=None)

pytest_plugins = ["tests.postgres"]
