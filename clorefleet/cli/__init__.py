"""The command line: one module per command group. Rendering is here, doing is elsewhere.

Nothing heavy is imported at the top of these modules: `clorefleet --help` must stay near the speed of
a bare interpreter.
"""
