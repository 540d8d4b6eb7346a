"""Build the native scan, a shared library independent of Python and torch; everything else is in pyproject.toml.

The library is optional: without a C++ compiler the package still installs, and logs which backend it uses.
"""

from __future__ import annotations

import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = "bids_app/model/csrc"
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
FLAGS += ["-g0", f"-ffile-prefix-map={os.path.abspath('.')}=."]  # no paths of the build machine
VARIANTS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    VARIANTS["avx2"] = ["-mavx2", "-mfma"]
    VARIANTS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"]


class BuildKernels(build_ext):
    """Compile the kernels for each instruction set and link them with the dispatcher."""

    def build_extension(self, ext: Extension) -> None:
        macros = [("NS_X86", "1")] if "avx2" in VARIANTS else []
        objects = self.compiler.compile(
            [f"{SOURCES}/dispatch.cpp"], self.build_temp, macros, extra_postargs=FLAGS, depends=ext.depends
        )
        for name, flags in VARIANTS.items():
            objects += self.compiler.compile(
                [f"{SOURCES}/kernels.cpp"],
                os.path.join(self.build_temp, name),
                [*macros, ("ISA", name)],
                extra_postargs=FLAGS + flags,
                depends=ext.depends,
            )
        strip = [] if sys.platform == "darwin" else ["-pthread", "-Wl,--build-id=none", "-s"]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=strip,
            build_temp=self.build_temp,
            target_lang="c++",
        )


setup(
    ext_modules=[
        Extension(
            "bids_app.model._scan",
            [f"{SOURCES}/dispatch.cpp", f"{SOURCES}/kernels.cpp"],
            depends=[
                f"{SOURCES}/{name}.h"
                for name in ("kernels", "lanes", "scan", "conv", "gemm", "linear", "spline", "block", "patch", "merge")
            ],
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
