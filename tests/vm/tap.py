# SPDX-License-Identifier: Apache-2.0
"""Tests of unittest, told as TAP: for the suites that boot machines."""

import pathlib
import time
import traceback
import unittest


class _Result(unittest.TestResult):
    """A line of TAP a test; a failure is explained by lines before it that begin with #."""

    def __init__(self, after_failure):
        super().__init__()
        self.after_failure = after_failure

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def _say(self, verdict, test, behind=""):
        name = test.id().rsplit(".", 2)
        took = time.monotonic() - self.began
        print(f"{verdict} {self.testsRun} - {name[-2]}: "
              f"{name[-1].removeprefix('test_').replace('_', ' ')} ({took:.1f} s){behind}",
              flush=True)

    def addSuccess(self, test):
        self._say("ok", test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._say("ok", test, f" # SKIP {reason}")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        kind, value, trace = error
        text = str(value) if issubclass(kind, AssertionError) else "".join(
            traceback.format_exception(kind, value, trace))
        said = test.transcript() if hasattr(test, "transcript") else ""
        frames = traceback.extract_tb(trace)
        where = next((frame for frame in frames
                      if pathlib.Path(frame.filename).name.startswith("test_")), frames[-1])
        where = f"{pathlib.Path(where.filename).name}:{where.lineno}"
        print("\n".join("# " + line for line in f"{where}: {text}\n{said}".splitlines()))
        self._say("not ok", test)
        self.after_failure()

    addError = addFailure


def _find(folder, words, without):
    loader = unittest.TestLoader()
    found = []
    for module in sorted(path.stem for path in folder.glob("test_*.py")):
        for group in loader.loadTestsFromName(module):
            found += [test for test in group
                      if (not words or _has(test, words)) and not _has(test, without)]
    return found


def _has(test, words):
    return any(word in test.id().replace("_", " ") for word in words)


def run(folder, words, after_failure, without=()):
    """The tests of a folder, which must be on the path, whose name has one of the words in it, all if
    there are none, and none of those in `without`. A machine in an unknown state is of no use to the next test: after_failure() is
    called after each that failed. True if there were tests and all went well."""
    chosen = _find(folder, words, without)
    print(f"1..{len(chosen)}", flush=True)
    result = _Result(after_failure)
    unittest.TestSuite(chosen).run(result)
    return bool(chosen) and result.wasSuccessful()
