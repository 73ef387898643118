//! What user code must not see, reach or do. Real attempts, real answers.

use std::time::Duration;

use sandmesh_proto::executor as pb;
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn environment_holds_nothing_of_ours() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let given = env(&[("GIVEN", "value"), ("PATH", "/usr/bin:/bin:/mine")]);
    let start = pb::ExecutionStart {
        env: given.clone(),
        ..python("import os\ndef handler(e): return dict(os.environ)")
    };
    let expected = json!({"GIVEN": "value", "PATH": "/usr/bin:/bin:/mine", "HOME": "/workspace", "LANG": "C.UTF-8", "TMPDIR": "/tmp"});
    let mut value = run(&mut client, start).await.value();
    // Python's own, where the locale had to be coerced.
    value.as_object_mut().unwrap().remove("LC_CTYPE");
    assert_eq!(value, expected);
    let start = pb::ExecutionStart { env: given, ..javascript("exports.handler = () => process.env") };
    assert_eq!(run(&mut client, start).await.value(), expected);
    let said = run(&mut client, shell("cat /proc/1/environ /proc/1/cmdline /proc/*/environ | tr '\\0' '\\n'; echo; echo $SECRET_OF_THE_HOST")).await;
    assert!(!said.out().contains("leaked") && !said.out().contains("SECRET"), "{}", said.out());
}

#[tokio::test]
async fn descriptors_are_the_streams_and_the_result() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import os, subprocess
def handler(event):
    own = sorted(int(n) for n in os.listdir('/proc/self/fd'))
    own = [n for n in own if os.path.exists(f'/proc/self/fd/{n}') or n < 4]
    child = subprocess.run(['ls', '/proc/self/fd'], capture_output=True, text=True).stdout.split()
    return [own, child, sorted(os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in (0, 1, 2, 3))]
";
    let value = run(&mut client, python(text)).await.value();
    assert_eq!(value, json!([[0, 1, 2, 3], ["0", "1", "2", "3"], ["pipe", "pipe", "pipe", "pipe"]]));
    let said = run(&mut client, shell("exec ls /proc/$$/fd")).await;
    assert_eq!(said.out(), "0\n1\n2\n3\n4\n", "4 is the directory that ls reads");
}

#[tokio::test]
async fn network_is_unreachable() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("
import errno, os, socket
def attempt(family, kind, address):
    s = None
    try:
        s = socket.socket(family, kind); s.settimeout(2); s.connect(address); s.send(b'x'); return 'reached'
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
    finally: s and s.close()
def handler(event):
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    try: socket.getaddrinfo('example.com', 80); dns = 'reached'
    except OSError as e: dns = 'failed'
    return [attempt(socket.AF_INET, tcp, ('127.0.0.1', {port})), attempt(socket.AF_INET, tcp, ('169.254.169.254', 80)),
            attempt(socket.AF_INET, udp, ('8.8.8.8', 53)), attempt(socket.AF_INET6, tcp, ('fd00:ec2::254', 80)),
            attempt(socket.AF_INET, tcp, ('1.1.1.1', 443)), dns, sorted(n for _, n in socket.if_nameindex()),
            os.path.exists('{dir}')]
", port = listener.local_addr().unwrap().port(), dir = daemon.dir.display());
    let value = run(&mut client, python(&text)).await.value();
    let none = "ENETUNREACH";
    assert_eq!(value, json!(["ECONNREFUSED", none, none, none, none, "failed", ["lo"], false]));
}

#[tokio::test]
async fn system_calls_of_attacks_are_denied() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = r"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else 'done'
def sock(*args):
    try: socket.socket(*args).close(); return 'done'
    except OSError as e: return errno.errorcode[e.errno]
def handler(event):
    return {
        'unshare user': call(272, 0x10000000), 'unshare net': call(272, 0x40000000), 'clone user': call(56, 0x10000000 | 17, 0, 0, 0, 0),
        'clone3': call(435, 0, 0), 'mount': call(165, 0, 0, 0, 0, 0), 'umount': call(166, 0, 0), 'pivot_root': call(155, 0, 0), 'setns': call(308, 0, 0),
        'ptrace': call(101, 0, 0, 0, 0), 'process_vm_readv': call(310, 1, 0, 0, 0, 0, 0), 'io_uring_setup': call(425, 1, 0),
        'bpf': call(321, 0, 0, 0), 'perf_event_open': call(298, 0, 0, 0, 0, 0), 'userfaultfd': call(323, 0), 'keyctl': call(250, 0, 0),
        'add_key': call(248, 0, 0, 0, 0, 0), 'kexec_load': call(246, 0, 0, 0, 0), 'init_module': call(175, 0, 0, 0), 'personality': call(135, 0),
        'swapon': call(167, 0, 0), 'reboot': call(169, 0, 0, 0, 0), 'acct': call(163, 0), 'open_by_handle_at': call(304, 0, 0, 0), 'chroot': call(161, 0),
        'fsopen': call(430, 0, 0), 'open_tree': call(428, 0, 0, 0), 'seccomp': call(317, 1, 0, 0), 'prctl seccomp': call(157, 22, 2, 0),
        'pidfd_getfd': call(438, 0, 0, 0), 'kill init': call(62, 1, 17), 'limit init': call(302, 1, 7, 0, 0), 'io_setup': call(206, 1, 0),
        'dccp': sock(2, 6), 'memfd_secret': call(447, 0), 'future call': call(9999), 'TIOCSTI': call(16, 0, 0x5412, 0),
        'TIOCSTI high': call(16, 0, 0x100005412, 0), 'TIOCLINUX': call(16, 0, 0x541C, 0),
        'AF_ALG': sock(38, socket.SOCK_SEQPACKET), 'AF_PACKET': sock(17, socket.SOCK_RAW), 'AF_VSOCK': sock(40, 1), 'AF_KEY': sock(15, 3), 'AF_RXRPC': sock(33, 2),
        'netlink xfrm': sock(16, 3, 6), 'netlink netfilter': sock(16, 3, 12), 'SCTP': sock(2, 1, 132), 'raw': sock(2, 3, 1),
    }
";
    let value = run(&mut client, python(text)).await.value();
    for (name, answer) in value.as_object().unwrap() {
        let expected =
            if ["clone3", "future call", "io_setup"].contains(&name.as_str()) { "ENOSYS" } else { "EPERM" };
        assert_eq!(answer, expected, "{name}");
    }
}

#[tokio::test]
async fn foreign_system_calls_kill() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    // mov eax, 20 (getpid of 32-bit Linux); int 0x80; ret  and  syscall(getpid | x32 bit)
    let thirty_two = "
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7); page.write(bytes.fromhex('b814000000cd80c3'))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print('alive')";
    for text in [thirty_two, "import ctypes; ctypes.CDLL(None).syscall(0x40000000 | 39); print('alive')"] {
        let said = run(&mut client, script(text)).await;
        assert_eq!((said.signal(), said.out().as_str()), (Some(libc::SIGSYS), ""), "{said:?}");
    }
}

#[tokio::test]
async fn identity_capabilities_and_files_are_those_of_the_jail() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = r"
import os
def write(path):
    try: open(path, 'w').close(); return 'written'
    except OSError as e: return type(e).__name__
def handler(event):
    status = dict(line.split(':', 1) for line in open('/proc/self/status') if ':' in line)
    return {
        'ids': [os.getuid(), os.getgid(), os.getgroups()],
        'caps': [status['Cap' + c].strip().lstrip('0') for c in ('Inh', 'Prm', 'Eff', 'Bnd', 'Amb')],
        'privs': [status['NoNewPrivs'].strip(), status['Seccomp'].strip()],
        'pids': sorted(int(p) for p in os.listdir('/proc') if p.isdigit() and int(p) < os.getpid()),
        'root': sorted(os.listdir('/')), 'home': os.listdir('/home') if os.path.exists('/home') else None,
        'written': [p for p in ('/x', '/usr/x', '/etc/x', '/dev/x', '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger', '/.sandmesh/init', '/.sandmesh/runner.py') if write(p) == 'written'],
        'absent': [p for p in ('/sys', '/run', '/dev/kmsg', '/dev/mem', '/root', '/etc/shadow', '/var') if os.path.exists(p)],
        'init fds': os.access('/proc/1/fd', os.R_OK), 'init mem': os.access('/proc/1/mem', os.R_OK),
        'tty': os.path.exists('/dev/tty') and write('/dev/tty'),
        'setuid': os.stat('/workspace').st_uid,
    }
";
    let value = run(&mut client, python(text)).await.value();
    let expected = json!({
        "ids": [1000, 1000, [1000]], "caps": ["", "", "", "", ""], "privs": ["1", "2"], "pids": [1], "home": null,
        "written": [], "absent": [], "init fds": false, "init mem": false, "tty": "OSError", "setuid": 1000,
        "root": value["root"],
    });
    let got = Value::Object(value.as_object().unwrap().clone().into_iter().collect());
    let groups = got["ids"][2].clone();
    assert!(groups == json!([1000]) || groups == json!([]), "{groups}");
    let mut expected = expected;
    expected["ids"][2] = groups;
    assert_eq!(got, expected);
    let root: Vec<_> = value["root"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in root {
        let known = [
            ".sandmesh",
            "bin",
            "dev",
            "etc",
            "lib",
            "lib32",
            "lib64",
            "libx32",
            "proc",
            "sbin",
            "tmp",
            "usr",
            "workspace",
        ];
        assert!(known.contains(&name), "{name}");
    }
}

#[tokio::test]
async fn init_cannot_be_disturbed() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let text = "
import os, signal
for s in range(1, 65):
    try: os.kill(1, s)
    except OSError: pass
os.kill(0, signal.SIGCONT)
print('still here')
raise SystemExit(3)
";
    let said = run(&mut client, script(text)).await;
    assert_eq!((said.out().as_str(), said.code()), ("still here\n", Some(3)), "{said:?}");
    // A process may kill all it can see; that is its own business and shows as what it is.
    let said = run(&mut client, script("import os; os.kill(-1, 9)")).await;
    assert!(matches!(said.signal(), Some(9) | None), "{said:?}");
}

#[tokio::test]
async fn executions_do_not_see_each_other() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let mut neighbour = client.clone();
    let sleeper =
        script("import time, os\nos.environ['X'] = '1'\nopen('/tmp/mine', 'w').close()\ntime.sleep(2)");
    let sleeper = pb::ExecutionStart { env: env(&[("NEIGHBOUR", "secret")]), ..sleeper };
    let watch = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        run(&mut client, shell("cat /proc/*/cmdline /proc/*/environ 2>/dev/null | tr '\\0' ' '; ls /tmp /dev/shm; ps aux 2>/dev/null")).await
    };
    let (_, said) = tokio::join!(run(&mut neighbour, sleeper), watch);
    assert!(!said.out().contains("NEIGHBOUR") && !said.out().contains("mine"), "{}", said.out());
}

/// Both together: the one who keeps what it is handed, and what the other said.
async fn hand_to_neighbour(client: &mut Client, fds: &str) -> Said {
    let keeper = script(
        "
import os, socket, time
if os.path.exists('/workspace/sock'): os.unlink('/workspace/sock')
s = socket.socket(socket.AF_UNIX); s.bind('/workspace/sock'); s.listen()
c, _ = s.accept(); kept = c.recvmsg(1, socket.CMSG_SPACE(16)); time.sleep(4)",
    );
    let giver = python(&format!(
        "
import array, os, socket, time
def handler(event):
    s = socket.socket(socket.AF_UNIX)
    while s.connect_ex('/workspace/sock'): time.sleep(0.01)
    s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', {fds}))]); time.sleep(0.2)
    print('gave')
    return 7"
    ));
    let mut neighbour = client.clone();
    let began = std::time::Instant::now();
    let give = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let said = run(client, giver).await;
        (said, began.elapsed())
    };
    let (_, (said, took)) = tokio::join!(run(&mut neighbour, keeper), give);
    assert!(took < Duration::from_secs(4), "{took:?}");
    said
}

#[tokio::test]
async fn pipes_handed_to_a_neighbour_hold_nothing_up() {
    let daemon = Daemon::start(Settings::default()).await;
    let mut client = daemon.client().await;
    let said = hand_to_neighbour(&mut client, "[1, 2]").await;
    assert_eq!((said.out().as_str(), said.value()), ("gave\n", serde_json::json!(7)), "{said:?}");
    // The result itself is not known to be whole while somebody could add to it; the rest is.
    let said = hand_to_neighbour(&mut client, "[1, 2, 3]").await;
    assert_eq!((said.out().as_str(), said.code()), ("gave\n", Some(0)), "{said:?}");
}
