# 12: system calls of another kind of program; one per run, as each is meant to kill. $ATTACK_WAY says which.
import mmap

way = os.environ["ATTACK_WAY"]
pages = []


def machine_code(code):
    # Below 4 GiB (MAP_32BIT), where 32-bit code could run.
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
    page.write(bytes.fromhex(code))
    pages.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return address, ctypes.CFUNCTYPE(ctypes.c_long)(address)


print("trying", flush=True)
if way == "int80 getpid":  # mov eax, 20; int 0x80; ret
    print("result", machine_code("b814000000cd80c3")[1]())
elif way == "int80 setuid":  # mov eax, 213; xor ebx, ebx; int 0x80; ret
    print("result", machine_code("b8d500000031dbcd80c3")[1]())
elif way == "int80 execve":  # mov eax, 11; xor ebx, ebx; xor ecx, ecx; xor edx, edx; int 0x80; ret
    print("result", machine_code("b80b00000031db31c931d2cd80c3")[1]())
elif way == "int80 in a thread":
    import threading

    entry = machine_code("b814000000cd80c3")[1]
    thread = threading.Thread(target=lambda: print("result", entry()))
    thread.start()
    thread.join()
elif way == "x32 getpid":
    print("result", raw(0x40000000 | 39))
elif way == "x32 mount":
    print("result", raw(0x40000000 | 165, 0, 0, 0, 0, 0))
elif way == "x32 ptrace":
    print("result", raw(0x40000000 | 521, 16, 1, 0, 0))
elif way == "x32 unshare":
    print("result", raw(0x40000000 | 272, 0x10000000))
elif way == "x32 number with high bits":
    print("result", raw(0x1_4000_0000 | 39))
print("alive")
