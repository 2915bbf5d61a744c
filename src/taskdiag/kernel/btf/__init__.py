"""BTF, the kernel's own description of its types (Documentation/bpf/btf.rst).

    >>> btf = Btf.load()
    >>> btf.member("task_struct", "comm").size
    16

`reader` answers questions, `index` knows the bytes, `paths` follows member paths, and
`printer` writes types as C.  Reading a kernel's BTF takes tens of milliseconds, so the
answers are kept by `taskdiag.kernel.facts`, and most runs never import this package.
"""

from .format import HEADER, KINDS, MAGIC, BtfError, NotFound
from .paths import parse_path
from .reader import VMLINUX, Btf

__all__ = ("HEADER", "KINDS", "MAGIC", "VMLINUX", "Btf", "BtfError", "NotFound", "parse_path")
