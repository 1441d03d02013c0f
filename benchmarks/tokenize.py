"""Speed of the token level; the measuring is done by token_speed.py.

    python benchmarks/tokenize.py [--full] [--json PATH]

This file is named like a module of the standard library, and Python looks for modules in a script's own folder first:
started as a script, it takes that folder off the path before anything else is imported; imported by another script of
the folder (`inspect` and `linecache` import `tokenize`), it puts the standard library's module in its place.
"""

import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120  (pathlib must not be imported yet)

if __name__ == "tokenize":
    import sysconfig
    from importlib import util

    _spec = util.spec_from_file_location("tokenize", f"{sysconfig.get_path('stdlib')}/tokenize.py")
    sys.modules["tokenize"] = util.module_from_spec(_spec)  # what the import statement will give
    _spec.loader.exec_module(sys.modules["tokenize"])

if __name__ == "__main__":
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != HERE]
    import runpy

    runpy.run_path(f"{HERE}/token_speed.py", run_name="__main__")
