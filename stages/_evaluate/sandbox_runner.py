"""Runs inside the sandbox: sets its own limits, then runs an answer and its tests.

sandbox.py passes this text to a bare interpreter that does not see the repository, so it imports none of our modules.
Standard input is one JSON object:

- `limits`: {name of a resource: value}
- `user`: the id to take where root started it, else null
- `answer`, `tests`: the code
- `word`: what goes to standard output after the tests. An answer that ends the process earlier has not passed.
"""

import json
import os
import random
import resource
import sys
import types

NOGROUP = 65534


def main() -> None:
    job = json.load(sys.stdin)
    verdict, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if (user := job["user"]) is not None:  # root's processes are not counted, and root may lift limits
        os.setgroups([])
        os.setresgid(NOGROUP, NOGROUP, NOGROUP)
        os.setresuid(user, user, user)
    random.seed(0)
    # Not __main__: the tests do not ask for what a program does when it is started.
    module = sys.modules["answer"] = types.ModuleType("answer")
    for name in ("answer", "tests"):
        exec(compile(job[name], name, "exec"), vars(module))  # noqa: S102  (that is what the sandbox is for)
    os.write(verdict, job["word"].encode())
    os._exit(0)


if __name__ == "__main__":
    if __spec__:  # sandbox.py passes this file as a text, which is no module
        sys.exit("sandbox_runner: this is no command. stages/_evaluate/sandbox.py starts it in a sandbox")
    main()
