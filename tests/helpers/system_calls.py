"""Kills a process before the n-th of its system calls that touch files, as the kernel sees them: ptrace, by ctypes alone."""

import ctypes
import os
import platform
import signal
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
TRACEME, GETREGS, SYSCALL, SETOPTIONS = 0, 12, 24, 0x4200
EXITKILL, SYSGOOD = 0x100000, 1

FILES = {
    1: "write", 2: "open", 3: "close", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 87: "unlink", 257: "openat",
    258: "mkdirat", 263: "unlinkat", 264: "renameat", 285: "fallocate", 316: "renameat2", 326: "copy_file_range",
}  # fmt: skip
"""Of x86-64, by number."""
REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs"
)


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS.split()]


def missing() -> str | None:
    """Why it does not work here."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{platform.system()} on {platform.machine()}: written for Linux on x86_64"
    child = os.fork()
    if child == 0:
        os._exit(ptrace(TRACEME) == -1)
    return "ptrace is not allowed" if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) else None


def ptrace(request: int, pid: int = 0, data: object = None) -> int:
    return LIBC.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, data)


def run(action: Callable[[], None], killed_before: int | None = None) -> list[str]:
    """`action` in a child; the calls that it came to make, the last of which it did not live to make where it was killed."""
    child = os.fork()
    if child == 0:
        ptrace(TRACEME)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            action()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    ptrace(SETOPTIONS, child, ctypes.c_long(EXITKILL | SYSGOOD))
    calls: list[str] = []
    registers, entering, passed_on = Registers(), True, 0
    while True:
        ptrace(SYSCALL, child, ctypes.c_long(passed_on))
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            return calls
        passed_on = 0
        if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
            passed_on = os.WSTOPSIG(status)
            continue
        if entering:
            ptrace(GETREGS, child, ctypes.byref(registers))
            if registers.orig_rax in FILES:
                calls.append(FILES[registers.orig_rax])
                if len(calls) == killed_before:
                    os.kill(child, signal.SIGKILL)
        entering = not entering
