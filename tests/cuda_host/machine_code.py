"""What a kernel's machine code does: the path through its main loop, loads in flight, doubles.

Reads the listing of cuobjdump, which ships with the CUDA toolkit and with triton.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
# A branch always taken has neither a predicate before it nor another condition before its target.
BRANCH = re.compile(r"^(@\S+\s+)?BRA(?:\.\S+)?\s+(\S+,\s*)?(0x[0-9a-f]+)")
LOAD = re.compile(r"^(?:@\S+\s+)?LDG\.E\S*?(\.64|\.128)?(?:\.\w+)?\s+R(\d+),(.*)")
ENDS = re.compile(r"^(?:EXIT|RET)")
REGISTER = re.compile(r"\bR(\d+)\b")
DOUBLE = re.compile(r"\b(?:D(?:ADD|MUL|FMA|SETP|MNMX)|F2F\S*F64\S*|I2F\S*F64\S*)\b")


def cuobjdump() -> str | None:
    """Return the program, or None where there is none."""
    found = shutil.which("cuobjdump")
    nvcc = shutil.which("nvcc")
    if found is None and nvcc is not None:
        found = shutil.which("cuobjdump", path=str(Path(nvcc).resolve().parent))
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
        found = shutil.which("cuobjdump", path=str(folder))
    return found


def kernels_in(cubin: Path) -> dict[str, Kernel]:
    """Return the kernels of a compiled file by their mangled names."""
    command = [str(cuobjdump()), "-sass", str(cubin)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\n\s*Function : (\S+)\n", listing)
    return {
        name: Kernel([(int(at, 16), text) for at, text in LINE.findall(body)])
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


@dataclass
class Kernel:
    """Addresses and texts of the instructions, in order."""

    code: list[tuple[int, str]]

    @cached_property
    def loop(self) -> tuple[int, int]:
        """First and last instruction of the smallest loop that has the most of the widest loads."""
        loads = [LOAD.match(text) for _, text in self.code]
        width = max((load[1] or "" for load in loads if load), key=len)
        loops = []
        for last, (address, text) in enumerate(self.code):
            branch = BRANCH.match(text)
            if branch and int(branch[3], 16) < address:
                first = self._index[int(branch[3], 16)]
                wide = sum(bool(load) and load[1] == width for load in loads[first:last] if load)
                loops.append((wide, first - last, first, last))
        assert loops, "no loop"
        _, _, first, last = max(loops)
        return first, last

    @cached_property
    def _index(self) -> dict[int, int]:
        return {address: i for i, (address, _) in enumerate(self.code)}

    def longest_path(self, without: str | None = None) -> int:
        """Count the instructions of the longest way through the loop, branches taken either way.

        Args:
            without: pattern of instructions that the way must not meet.
        """
        first, last = self.loop
        known: dict[int, int] = {}

        def rest(start: int) -> int:
            """Count from here to the end of the loop; -1 where no way leads there."""
            if start not in known:
                known[start] = -1  # a way that comes by here again
                known[start] = walk(start)
            return known[start]

        def walk(start: int) -> int:
            for at in range(start, len(self.code)):
                text = self.code[at][1]
                if without is not None and re.search(without, text):
                    return -1
                if at == last:
                    return at - start + 1
                branch = BRANCH.match(text)
                if branch:
                    ways = [rest(self._index[int(branch[3], 16)])]
                    if branch[1] or branch[2]:
                        ways.append(rest(at + 1))
                    return -1 if max(ways) < 0 else at - start + 1 + max(ways)
                if ENDS.match(text):
                    return -1
            return -1

        found = rest(first)
        assert found > 0, f"every way through the loop meets {without}"
        return found

    @property
    def loads_in_flight(self) -> int:
        """Count the loads of the loop that are issued before the result of any of them is used."""
        first, last = self.loop
        most, issued, pending = 0, 0, set[int]()
        for _, text in self.code[first : last + 1]:
            load = LOAD.match(text)
            used = {int(number) for number in REGISTER.findall(load[3] if load else text)}
            if used & pending:
                issued, pending = 0, set()
            if load:
                width = {"": 1, ".64": 2, ".128": 4}[load[1] or ""]
                pending |= set(range(int(load[2]), int(load[2]) + width))
                issued += 1
                most = max(most, issued)
        return most

    @property
    def doubles_in_loop(self) -> int:
        """Count the double-precision instructions of the loop."""
        first, last = self.loop
        return sum(bool(DOUBLE.search(text)) for _, text in self.code[first : last + 1])
