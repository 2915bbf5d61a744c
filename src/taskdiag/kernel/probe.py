"""Small programs that determine facts about the caller and the host for other programs.

Each is run for one thread, by default one of the caller, and writes u64 numbers.
"""

from __future__ import annotations

from .asm import R0, R1, R2, R3, R6, R8, R9, R10, Assembler
from .compile import Program
from .emit import HELPERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .facts import Facts

__all__ = ("PERCPU_MAP", "per_cpu_areas", "pid_namespace", "special_ops")

#: The name by which `per_cpu_areas` refers to a map of type BPF_MAP_TYPE_PERCPU_ARRAY.
PERCPU_MAP = "percpu"

# Frame: the number that is read or written, the seq_file, an iterator.
_NUMBER, _SEQ, _SPACE = -8, -16, 24


def pid_namespace(facts: Facts) -> Program:
    """Writes the level of the task's pid namespace and its inode number."""
    member = facts.member
    a = _Probe(facts)
    a.load(R8, R6, member("task_struct", "thread_pid").offset)
    a.load(R0, R8, member("pid", "level").offset, 4)
    a.write(R0)
    # The verifier accepts only constant offsets into a structure, and the level is not
    # constant.  So the element is copied from its address.
    a.load(R9, R8, member("pid", "level").offset, 4)
    a.alu("mul", R9, facts.size(facts.type_id("struct", "upid")))
    a.alu("add", R8, member("pid", "numbers").offset + member("upid", "ns").offset)
    a.mov(R3, R8)
    a.alu("add", R3, R9)
    a.copy(8)
    a.load(R3, R10, _NUMBER)
    a.alu("add", R3, member("pid_namespace", "ns.inum").offset)
    a.store(R10, _NUMBER, 0)
    a.copy(4)
    a.load(R0, R10, _NUMBER)
    a.write(R0)
    return a.program()


def special_ops(facts: Facts) -> Program:
    """Writes the address of ``special_mapping_vmops`` (mm/vma.c), -1 if it is not found.

    The symbol is static.  But the vdso's mapping has these operations, and the address of
    the vdso is in the caller's mm.  Without a vdso (boot option ``vdso=0``) it is not found; 0
    would then be wrong, since anonymous mappings have 0.
    """
    member = facts.member
    a = _Probe(facts)
    a.load(R3, R6, member("task_struct", "mm").offset)
    a.alu("add", R3, member("mm_struct", "context.vdso").offset)
    a.copy(8)
    a.load(R8, R10, _NUMBER)
    a.mov(R9, -1)
    a.iterator()
    a.mov(R2, R6)
    a.mov(R3, R8)
    a.call_kfunc(facts.type_id("func", "bpf_iter_task_vma_new"))
    a.iterator()
    a.call_kfunc(facts.type_id("func", "bpf_iter_task_vma_next"))
    a.jump("==", R0, 0, "none")
    a.load(R1, R0, member("vm_area_struct", "vm_start").offset)
    a.jump("!=", R1, R8, "none")
    a.load(R9, R0, member("vm_area_struct", "vm_ops").offset)
    a.label("none")
    a.iterator()
    a.call_kfunc(facts.type_id("func", "bpf_iter_task_vma_destroy"))
    a.write(R9)
    return a.program()


def per_cpu_areas(facts: Facts, cpus: int) -> Program:
    """Writes the ``void __percpu *`` of a per-CPU map's value, then its address on each CPU.

    The differences are the kernel's ``__per_cpu_offset[]``.  It cannot be read directly:
    BPF can name per-CPU variables only if kallsyms has data symbols.  The address is 0 for a
    CPU that is not possible.
    """
    a = _Probe(facts)
    array = facts.member("bpf_array", "pptrs").offset + 8
    # Copy the start of the struct bpf_array, up to and including pptrs[0].
    a.mov(R1, R10)
    a.alu("add", R1, -_SPACE - array)
    a.mov(R2, array)
    a.map(R3, PERCPU_MAP)
    a.call(HELPERS["probe_read_kernel"])
    a.load(R0, R10, -_SPACE - 8)
    a.write(R0)
    for cpu in range(cpus):
        a.store(R10, _NUMBER, 0)
        a.map(R1, PERCPU_MAP)
        a.mov(R2, R10)
        a.alu("add", R2, _NUMBER)
        a.mov(R3, cpu)
        a.call(HELPERS["map_lookup_percpu_elem"])
        a.write(R0)
    return a.program()


class _Probe(Assembler):
    """R6 = the task; numbers are read and written through the first slot of the frame."""

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.load(R6, R1, facts.member("bpf_iter__task", "task").offset)
        self.jump("==", R6, 0, "end")
        self.load(R2, R1, facts.member("bpf_iter__task", "meta").offset)
        self.load(R2, R2, facts.member("bpf_iter_meta", "seq").offset)
        self.store(R10, _SEQ, R2)

    def write(self, number: int) -> None:
        """Write a number to the output."""
        self.store(R10, _NUMBER, number)
        self.load(R1, R10, _SEQ)
        self.mov(R2, R10)
        self.alu("add", R2, _NUMBER)
        self.mov(R3, 8)
        self.call(HELPERS["seq_write"])

    def copy(self, size: int) -> None:
        """Copy ``size`` bytes from the kernel address in R3 to the slot for numbers."""
        self.mov(R1, R10)
        self.alu("add", R1, _NUMBER)
        self.mov(R2, size)
        self.call(HELPERS["probe_read_kernel"])

    def iterator(self) -> None:
        """R1 = the address of the ``struct bpf_iter_task_vma``."""
        self.mov(R1, R10)
        self.alu("add", R1, -_SPACE)

    def program(self) -> Program:
        """End the program and assemble it."""
        self.label("end")
        self.mov(R0, 0)
        self.exit()
        return Program(self.assemble(), sleepable=False, arena=False)
