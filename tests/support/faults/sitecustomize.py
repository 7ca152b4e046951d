"""With this folder on PYTHONPATH, FAULT=module:function:n:signal sends the signal at the n-th call of that function, to
the whole process group where it is SIGKILL or `:group` follows. So a real process ends at a moment that a test can
choose."""

import functools
import importlib.util
import os
import signal
import sys


class Finder:
    """Finds one module, as the others would, and wraps one of its functions once it is loaded."""

    def __init__(self, module, function, number, name, whom=None):
        self.module, self.function, self.left, self.signal = module, function, int(number), signal.Signals[name]
        self.group = whom == "group" or self.signal == signal.SIGKILL

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda loaded: (load(loaded), self.wrap(loaded))
        return spec

    def wrap(self, loaded):
        *owner, name = self.function.split(".")
        place = functools.reduce(getattr, owner, loaded)
        function = getattr(place, name)

        @functools.wraps(function)
        def wrapped(*arguments, **options):
            self.left -= 1
            if self.left == 0 and self.group:
                os.killpg(os.getpgid(0), self.signal)
            elif self.left == 0:
                os.kill(os.getpid(), self.signal)
            return function(*arguments, **options)

        setattr(place, name, wrapped)


if "FAULT" in os.environ:
    sys.meta_path.insert(0, Finder(*os.environ["FAULT"].split(":")))
