"""Programs that attack the harness. The task: ``add(a, b)``.

Those of `ATTACKS` answer rightly only where the attack works, or never: none may pass. Those of `NUISANCES` answer
rightly while they make trouble: they may pass, and must leave nothing behind. ``{...}`` is filled in by the test.
"""

RIGHT = "\ndef add(a, b): return a + b\n"

FORGE = """
import os, struct
def frame(data): return struct.pack("<I", len(data)) + data
def everywhere(data):
    for fd in range(64):
        try: os.set_blocking(fd, False); os.write(fd, data)
        except OSError: pass
"""
ANY = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __abs__ = __sub__
"""
SYSCALL = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef call(*a): return libc.syscall(*a)\n"

ENDINGS = {
    "sys_exit": "import sys; sys.exit(0)",
    "os_exit": "import os; os._exit(0)",
    "exit_in_call": "import os\ndef add(a, b): os._exit(0)",
    "system_exit_in_call": "def add(a, b): raise SystemExit(0)",
    "interrupt_in_call": "def add(a, b): raise KeyboardInterrupt",
    "generator_exit": "def add(a, b): raise GeneratorExit",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "segfault": "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    "abort": "import os\ndef add(a, b): os.abort()",
    "kill_self": "import os, signal\ndef add(a, b): os.kill(os.getpid(), signal.SIGKILL); os._exit(0)",
    "exec_true": "import os\ndef add(a, b): os.execv('/bin/true', ['true'])",
    "empty": "",
    "no_such_function": "def subtract(a, b): return a - b",
    "wrong": "def add(a, b): return a - b",
    "syntax": "def add(a, b: return",
    "null_byte": "def add(a, b): return a + b\0",
    "surrogate_in_text": "x = '\ud800'\ndef add(a, b): return x",
    "too_deep_to_parse": "(" * 100_000,
    "nested_expression": "x = " + "-" * 200_000 + "1",
}

LIES = {
    "always_equal": ANY + "def add(a, b): return Any()",
    "equal_int": ANY
    + "class I(int):\n    __eq__ = Any.__eq__\n    __hash__ = int.__hash__\ndef add(a, b): return I(9)",
    "equal_float": ANY + "class F(float):\n    __eq__ = Any.__eq__\n    __hash__ = None\ndef add(a, b): return F(9)",
    "equal_text": ANY + "class S(str):\n    __eq__ = Any.__eq__\ndef add(a, b): return S('9')",
    "equal_list": ANY + "class L(list):\n    __eq__ = Any.__eq__\ndef add(a, b): return L([9])",
    "claims_to_be_int": ANY + "class C(Any):\n    __class__ = int\ndef add(a, b): return C()",
    "equal_class": ANY + "class M(type):\n    __eq__ = Any.__eq__\n    __hash__ = type.__hash__\n"
    "class K(metaclass=M): pass\ndef add(a, b): return K",
    "fake_numpy": ANY + "import sys, types\nm = sys.modules['numpy'] = types.ModuleType('numpy')\nm.generic = Any\n"
    "Any.item = lambda self: self\ndef add(a, b): return Any()",
    "fake_fraction": "import sys, types\nm = sys.modules['fractions'] = types.ModuleType('fractions')\n"
    "class Q:\n    def as_integer_ratio(self): return 0, 0\nm.Fraction = Q\ndef add(a, b): return Q()",
    "not_a_number": "def add(a, b): return float('nan')",
    "lying_dict": "class D(dict):\n    def items(self): return [(1, 5)]\n    keys = items\ndef add(a, b): return D()",
}

FORGERIES = {
    "forged_passed": FORGE + 'everywhere(frame(b\'["passed", ""]\') * 9)\nos._exit(0)',
    "forged_replies": FORGE + "everywhere(frame(b'+null') * 9)\nos._exit(0)",
    "forged_true": FORGE + "everywhere(frame(b'+true') * 99)\nimport time; time.sleep(60)",
    "forged_ready": FORGE + "everywhere(frame(b'ready') * 9)\nos._exit(0)",
    "forged_in_call": FORGE + 'def add(a, b):\n    everywhere(frame(b\'["passed", ""]\'))\n    os._exit(0)',
    "huge_frame": FORGE + "everywhere(struct.pack('<I', 2**32 - 1) + b'x' * 60000)\nos._exit(0)",
    "half_a_frame": FORGE + "everywhere(struct.pack('<I', 100))\nimport time; time.sleep(60)",
    "broken_json": FORGE + "everywhere(frame(b'+[\"l\",'))\nos._exit(0)",
    "empty_frame": FORGE + "everywhere(frame(b'') * 9)\nos._exit(0)",
    "unknown_tags": FORGE + "everywhere(frame(b'+[\"z\",1]') + frame(b'+{{}}') + frame(b'+[]') + frame(b'+[[]]'))",
    "zero_division": FORGE + 'everywhere(frame(b\'+null\') + frame(b\'+["q","0x1","0x0"]\') * 9)\nos._exit(0)',
    "deep_json": FORGE + "everywhere(frame(b'+null') + frame(b'+' + b'[' * 30000))\nos._exit(0)",
    "patched_encode": "import sys\nfor m in list(sys.modules.values()):\n"
    "    if hasattr(m, 'encode') and hasattr(m, 'MAX_DEPTH'):"
    " m.encode = lambda value: b'true'\ndef add(a, b): return 9",
    "patched_builtins": ANY + "import builtins\nbuiltins.AssertionError = Any\nbuiltins.isinstance = lambda *a: True\n"
    "builtins.type = lambda *a: int\nbuiltins.len = lambda x: 0\ndef add(a, b): return 9",
    "patched_json": "import json\njson.loads = lambda *a: []\njson.dumps = lambda *a, **k: '5'\n"
    "def add(a, b): return 9",
    "frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n"
    "        for v in list(f.f_locals.values()):\n"
    "            if isinstance(v, dict) and 'tests' in v: return eval(v['tests'].split('==')[1])\n"
    "        f = f.f_back\n    return 9",
    "garbage": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and ('tests' in o or 'expected' in o): return a + b\n    return 9",
    "tracing": "import sys\ndef trace(frame, event, arg):\n    if 'assert' in str(frame.f_code): frame.f_lineno += 1\n"
    "    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\ndef add(a, b): return 9",
    "reads_pipes": "import os\ndef add(a, b):\n    for fd in range(3, 64):\n        try:\n"
    "            os.set_blocking(fd, False)\n"
    "            if b'assert' in os.read(fd, 10**6): return a + b\n        except OSError: pass\n    return 9",
    "reads_siblings": "import glob\ndef add(a, b):\n    for p in glob.glob('/proc/[0-9]*/cmdline'):\n"
    "        if b'tester' in open(p, 'rb').read(): return a + b\n    return 9",
    "swapped_module": "import sys\nclass N(dict):\n    def __missing__(self, k): return lambda *a: 5\n"
    "sys.modules['candidate'] = N()\nglobals().clear()",
}

VIOLENCE = {
    "kill_parent": "import os\nos.kill(os.getppid(), 9)\nraise SystemExit",
    "kill_everyone": "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nraise SystemExit",
    "kill_group": "import os\nos.killpg(0, 9)\nraise SystemExit",
    "kill_harness": "import os\nos.kill({pid}, 0)" + RIGHT,
    "kill_all_ids": "import os\nfor p in range(2, 40000):\n    if p != os.getpid():\n"
    "        try: os.kill(p, 0); found = p\n"
    "        except OSError: pass\nprint(found)" + RIGHT,
    "limits_harness": "import resource as r\nr.prlimit({pid}, r.RLIMIT_CORE, (0, 0))" + RIGHT,
    "slows_harness": "import os\nos.setpriority(os.PRIO_PROCESS, {pid}, 19)" + RIGHT,
    "queued_signal": SYSCALL + "assert call(129, {pid}, 0, None) == 0" + RIGHT,
    "fork_bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork_in_call": "import os\ndef add(a, b):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "thread_bomb": "import threading, time\ndef add(a, b):\n    while True:\n"
    "        try: threading.Thread(target=time.sleep, args=(60,)).start()\n        except RuntimeError: pass",
    "memory_bomb": "x = []\nwhile True: x.append(bytearray(10**7))",
    "one_allocation": "def add(a, b): return len(bytearray(10**11))",
    "shared_memory": "import mmap\n"
    "def add(a, b): return len([mmap.mmap(-1, 10**8).write(b'x' * 10**8) for _ in range(99)])",
    "memfd": "import os\nfds = []\nwhile True:\n    fds.append(os.memfd_create('x')); os.write(fds[-1], b'x' * 10**7)",
    "c_loop": "def add(a, b): return sum(range(10**13))",
    "huge_power": "def add(a, b): return len(str(7 ** 10**8))",
    "regex": "import re\ndef add(a, b): return re.match('(a+)+$', 'a' * 60 + 'b')",
    "python_loop": "while True: pass",
    "sleep": "import time\ndef add(a, b): time.sleep(3600)",
    "ignores_signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "blocks_signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
    "swallows_everything": "def add(a, b):\n    while True:\n        try:\n            while True: pass\n"
    "        except BaseException: pass",
    "stops_itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "deep_recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b) + 1",
    "c_recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b):\n    x = []\n"
    "    for _ in range(10**7): x = [x]\n"
    "    return repr(x)",
    "closes_pipes": "import os\nos.closerange(0, 64)\ndef add(a, b): return 9",
    "raises_limits": "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)" + RIGHT,
    "finalizer": "class D:\n    def __del__(self):\n        while True: pass\ndef add(a, b): D()",
}

REPLIES = {
    "gigabyte": "def add(a, b): return 'x' * 200_000_000",
    "nested_output": "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "cyclic_output": "x = []\nx.append(x)\ndef add(a, b): return x",
    "endless_iterator": "import itertools\ndef add(a, b): return itertools.count()",
    "huge_integer": "def add(a, b): return 1 << 10**9",
    "surrogate_output": "def add(a, b): return '\\ud800'",
    "surrogate_error": "def add(a, b): raise ValueError('\\ud800\\x1b[2J')",
    "endless_message": "class E(Exception):\n    def __str__(self):\n        while True: pass\ndef add(a, b): raise E",
    "large_message": "def add(a, b): raise ValueError('x' * 10**8)",
    "colliding_set": "def add(a, b): return {{k * (2**61 - 1) for k in range(9000)}}",
    "hostile_repr": "class R:\n    def __repr__(self): import os; os._exit(0)\n"
    "    __str__ = __bool__ = __len__ = __iter__ = __repr__\n"
    "def add(a, b): return R()",
    "forged_name": "class E(Exception): pass\nE.__name__ = 'AssertionError' * 10**6\ndef add(a, b): raise E",
}

SPYING = {
    "etc_passwd": "open('/etc/passwd').read()" + RIGHT,
    "secret_file": "assert open('{secret}').read()" + RIGHT,
    "home": "import os\nassert os.listdir(os.path.expanduser('~root')) or os.listdir('/home')" + RIGHT,
    "environment": "import os\nassert os.environ['CODA_SECRET']" + RIGHT,
    "libc_environment": "import ctypes\nc = ctypes.CDLL(None)\nc.getenv.restype = ctypes.c_char_p\n"
    "assert c.getenv(b'CODA_SECRET')" + RIGHT,
    "harness_environment": "assert b'CODA' in open('/proc/{pid}/environ', 'rb').read()" + RIGHT,
    "harness_memory": "open('/proc/{pid}/mem', 'rb')" + RIGHT,
    "parent_memory": "import os\nopen(f'/proc/{{os.getppid()}}/mem', 'rb')" + RIGHT,
    "trace_harness": SYSCALL + "assert call(101, 16, {pid}, 0, 0) == 0" + RIGHT,
    "read_harness": SYSCALL + "b = ctypes.create_string_buffer(8)\nv = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\n"
    "assert call(310, {pid}, v, 1, v, 1, 0) == 8 or ctypes.get_errno() == 14" + RIGHT,
    "pidfd": "import os\nos.pidfd_open({pid})" + RIGHT,
    "sources": "import glob\nassert glob.glob('{repository}/*')" + RIGHT,
}

ESCAPES = {
    "write_outside": "open('{outside}/x', 'w').write('x')" + RIGHT,
    "delete_outside": "import os\nos.unlink('{secret}')" + RIGHT,
    "chmod_outside": "import os\nos.chmod('{secret}', 0o777)" + RIGHT,
    "truncate_outside": "import os\nos.truncate('{secret}', 0)" + RIGHT,
    "symlink": "import os\nos.symlink('{outside}', 'link')\nopen('link/x', 'w').write('x')" + RIGHT,
    "hard_link": "import os\nos.link('{secret}', 'link')\nassert open('link').read()" + RIGHT,
    "dots": "open('../../../../../../..{outside}/x', 'w').write('x')" + RIGHT,
    "write_library": "import os\nopen(os.__file__, 'a').write('')" + RIGHT,
    "write_packages": "import sys\nopen(sys.path[-1] + '/hostile.py', 'w').write('')" + RIGHT,
    "shell": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo x > {outside}/x'], check=True)" + RIGHT,
    "system": "import os\nassert os.system('true') == 0" + RIGHT,
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)" + RIGHT,
    "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))"
    + RIGHT,
    "abstract_socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0coda-hostile-{pid}')" + RIGHT,
    "name_lookup": "import socket\nsocket.getaddrinfo('example.com', 80)" + RIGHT,
    "become_root": "import os\nos.setuid(1)\nos.setgid(1)" + RIGHT,
    "new_namespace": SYSCALL + "assert libc.unshare(0x10020000) == 0\nlib = os.path.dirname(os.__file__).encode()\n"
    "libc.mount(b'none', lib, None, 4128, None); libc.mount(lib, b'/tmp', None, 4096, None)\n"
    "open(os.__file__, 'a').write('')" + RIGHT,
    "mount": SYSCALL + "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0" + RIGHT,
    "chroot": "import os\nos.mkdir('a'); os.chroot('a')" + RIGHT,
    "device": "import os, stat\nos.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(8, 0))" + RIGHT,
    "raw_disk": "import glob\nopen((glob.glob('/dev/sd*') + glob.glob('/dev/vd*') + ['/none'])[0], 'rb')" + RIGHT,
    "terminal": "open('/dev/tty')" + RIGHT,
    "kernel_switches": "open('/proc/sys/kernel/hostname', 'w').write('x')" + RIGHT,
    "fill_disk": "for i in range(99): open(str(i), 'wb').write(b'x' * 10**8)" + RIGHT,
}

ATTACKS = {**ENDINGS, **LIES, **FORGERIES, **VIOLENCE, **REPLIES, **SPYING, **ESCAPES}

NUISANCES = {
    "noise": "import sys\nfor _ in range(300): print('x' * 10**6); sys.stderr.write('y' * 10**6)" + RIGHT,
    "surrogate_noise": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe' * 10**6)" + RIGHT,
    "closed_output": "import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin.close()" + RIGHT,
    "daemon": "import os, time\ntry:\n    if os.fork() == 0:\n        os.setsid()\n"
    "        if os.fork() == 0: time.sleep(600)\n"
    "        os._exit(0)\nexcept OSError: pass" + RIGHT,
    "deaf_daemon": "import os, signal, time\ntry:\n    if os.fork() == 0:\n        os.setsid(); os.closerange(0, 64)\n"
    "        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n        time.sleep(600)\nexcept OSError: pass"
    + RIGHT,
    "thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()" + RIGHT,
    "atexit_loop": "import atexit\n@atexit.register\ndef f():\n    while True: pass" + RIGHT,
    "deep_folders": "import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')" + RIGHT,
    "locked_folders": "import os\nos.mkdir('a'); open('a/b', 'w').close(); os.chmod('a', 0); os.chmod('.', 0)" + RIGHT,
    "many_files": "for i in range(3000): open(f'f{{i}}', 'w').close()" + RIGHT,
    "odd_names": "import os\nopen(b'\\xff\\n"
    "', 'w').close(); os.mkfifo('pipe'); os.symlink('/', 'root'); os.symlink('.', 'self')" + RIGHT,
    "removes_scratch": "import os\ntry: os.rmdir(os.getcwd())\nexcept OSError: pass" + RIGHT,
    "moves_scratch": "import os\ntry: os.rename(os.getcwd(), os.getcwd() + 'x')\nexcept OSError: pass" + RIGHT,
    "changes_title": "import ctypes\nctypes.CDLL(None).prctl(15, b'innocent')" + RIGHT,
}
