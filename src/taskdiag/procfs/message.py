"""Functions that make a task's whole message, for the common case.

`task.read_directory` works in steps and handles every case.  A function made here does the
same in one step: it splits the files and packs all headers and fields with a single struct.
It is generated for one plan and one form of the status file.  For any other input it returns
None, and `task.read_directory` is used instead.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

from ..abi import GROUPS, MSG, NLM_F_MULTI, RESPONSE, Attr
from .comm import needs_care
from .reader import BLOCK
from .status import MM, TGID, THREADS, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    #: Called with status and stat (b"" if not read), tid, tgid and sequence number.
    Message = Callable[[bytes, bytes, int, int, int], bytes | None]
    #: Attribute type, source of each field's value, whether the group needs an address space.
    Source = tuple[Attr, list[str], bool]

__all__ = ("compile_message",)

# The plan's sources use the variables m (the values of status), f (the fields of stat) and c
# (the comm); `status.values_of` uses l (the lines of status).
_STATUS = """
        l = status.split(b"\\n", {last})
        if len(status) >= {block} or {unlike}:
            return None
        m = ({values})
        c = {comm}
        if m[-1] == b"0" or int(m[-2]) != tgid or {odd}:
            return None
"""
_STAT = """
        f = [b"", b"", *stat[stat.rindex(b") ") + 2 :].split(b" ", {count})]
        if len(stat) >= {block} or len(f) <= {count} + 2 or f[19] == b"0":
            return None
"""
_MESSAGE = """
def message(status, stat, tid, tgid, seq):
    try:
        {status}
        {stat}
        return pack({length}, {kind}, {flags}, seq, 0, tid, tgid, 0, {groups})
    except (ValueError, KeyError, IndexError, StructError):
        return None
"""


def compile_message(
    groups: list[Source],
    names: Mapping[str, object],
    form: list[str],
    wanted: list[tuple[str, int]],
    last: int,
) -> Message:
    """Make the function for tasks whose status file has the lines of ``form``, in this order.

    ``groups`` are the groups of the plan, and ``names`` the names that their sources refer to.
    ``wanted`` are the values of status that they use, empty if status is not read, and ``last``
    is the highest index of a field of stat that they use, 0 if stat is not read.
    """
    has_mm = MM[0] in form
    kinds = [attr for attr, _, _ in groups]
    layout, values = MSG.format, []
    for attr, sources, needs_mm in groups:
        if has_mm or not needs_mm:
            layout += "HH" + GROUPS[attr].format().removeprefix("=")
            values += [str(4 + GROUPS[attr].size), str(int(attr)), *sources]
    struct = Struct(layout)
    source = _MESSAGE.format(
        status=_status(form, wanted, not has_mm and Attr.BASE in kinds) if wanted else "",
        # The fields of stat are split from the state on, up to the last one that is used; one
        # more must follow.
        stat=_STAT.format(block=BLOCK, count=max(last, 19) - 1) if last else "",
        length=struct.size,
        kind=RESPONSE,
        flags=NLM_F_MULTI,
        groups=", ".join(values),
    )
    scope = {**names, "pack": struct.pack, "needs_care": needs_care, "StructError": StructError}
    exec(source, scope)
    message: Message = scope["message"]  # type: ignore[assignment]
    return message


def _status(form: list[str], wanted: list[tuple[str, int]], care: bool) -> str:
    marks, values = values_of(form, [*wanted, TGID, THREADS])
    odd = "False"
    if ("Name", 0) in wanted:
        odd = 'b"\\\\" in c' + (" or needs_care(c)" if care else "")
    return _STATUS.format(
        last=marks[-1][0] + 1,
        block=BLOCK,
        unlike=" or ".join(f"not l[{at}].startswith({key!r})" for at, key in marks),
        values=", ".join(values),
        comm=f"m[{wanted.index(('Name', 0))}]" if ("Name", 0) in wanted else 'b""',
        odd=odd,
    )
