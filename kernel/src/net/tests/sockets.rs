//! The `sys_*` functions of std's `net`, over the loopback, with threads that wait.

use crate::abi::errno::Errno;
use crate::abi::fd;
use crate::abi::fd::{Object, Ready};
use crate::abi::socket::{How, Name, SetOption, Socket, Value};
use crate::net::config::Config;
use crate::net::socket::{TcpSocket, UdpSocket};
use crate::net::stack::Stack;
use crate::net::tcp;
use core::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

fn start() {
    let make = |now| Stack::new(Config::default(), tcp::Config::default(), [7; 32], now);
    crate::net::start(make, |_| {});
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(at: &str) -> (Arc<TcpSocket>, SocketAddr) {
    start();
    let at = addr(at);
    let l = TcpSocket::open(at.is_ipv6());
    l.bind(at).unwrap();
    l.listen(128).unwrap();
    let at = l.local().unwrap();
    (l, at)
}

fn connected() -> (Arc<TcpSocket>, Arc<dyn Object>) {
    let (l, at) = listener("127.0.0.1:0");
    let c = TcpSocket::open(false);
    c.connect(Some(at)).unwrap();
    let (s, from) = l.accept().unwrap();
    assert_eq!(from, c.local().unwrap());
    (c, s)
}

fn receive(s: &dyn Object, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let n = s.read(&mut out).unwrap();
    out.truncate(n);
    out
}

#[test]
fn echo_with_threads_on_both_families() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (l, at) = listener(at);
        let server = thread::spawn(move || {
            for _ in 0..8 {
                let (s, _) = l.accept().unwrap();
                thread::spawn(move || {
                    loop {
                        let got = receive(&*s, 5000);
                        if got.is_empty() {
                            break;
                        }
                        assert_eq!(s.write(&got), Ok(got.len()));
                    }
                });
            }
        });
        let clients: Vec<_> = (0..8u8)
            .map(|n| {
                thread::spawn(move || {
                    let c = TcpSocket::open(at.is_ipv6());
                    c.connect(Some(at)).unwrap();
                    let data: Vec<u8> = (0..400_000).map(|i| (i / 7) as u8 ^ n).collect();
                    let (sender, sent) = (Arc::clone(&c), data.clone());
                    let writer = thread::spawn(move || {
                        assert_eq!(sender.write(&sent), Ok(sent.len()));
                        sender.shutdown(How::Write).unwrap();
                    });
                    let mut got = Vec::new();
                    loop {
                        let part = receive(&*c, 3000);
                        if part.is_empty() {
                            break;
                        }
                        got.extend(part);
                    }
                    writer.join().unwrap();
                    assert!(got == data);
                })
            })
            .collect();
        clients.into_iter().for_each(|c| c.join().unwrap());
        server.join().unwrap();
    }
}

#[test]
fn timeouts_and_not_waiting() {
    let (c, s) = connected();
    let mut buf = [0; 10];
    let timeout = SetOption::Timeout(Name::ReceiveTimeout, 50_000_000);
    c.set_option(timeout).unwrap();
    assert_eq!(
        c.option(Name::ReceiveTimeout),
        Ok(Value::Timeout(50_000_000))
    );
    let began = Instant::now();
    assert_eq!(c.read(&mut buf), Err(Errno::EAGAIN));
    assert!(began.elapsed() >= Duration::from_millis(50));
    c.set_nonblocking(true).unwrap();
    assert_eq!(c.read(&mut buf), Err(Errno::EAGAIN));
    // Full: it says so instead of waiting.
    let big = vec![0; 1 << 20];
    let mut sent = 0;
    let full = loop {
        match c.write(&big) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert!(full == Errno::EAGAIN && sent > 100_000);
    assert!(!c.readiness().contains(Ready::WRITE));
    let mut got = 0;
    while got < sent {
        got += receive(&*s, 100_000).len();
    }
    let began = Instant::now();
    while !c.readiness().contains(Ready::WRITE) {
        assert!(began.elapsed() < Duration::from_secs(5));
        thread::yield_now();
    }
}

#[test]
fn peek_half_close_and_the_end() {
    let (c, s) = connected();
    let peer = s.socket().unwrap();
    c.write(b"hello").unwrap();
    let mut buf = [0; 16];
    let peek = crate::abi::socket::msg::PEEK;
    assert_eq!(peer.receive(&mut buf, peek), Ok((5, None)));
    assert_eq!(receive(&*s, 16), b"hello");
    c.shutdown(How::Write).unwrap();
    assert_eq!(receive(&*s, 16), b"");
    assert_eq!(c.write(b"x"), Err(Errno::EPIPE));
    s.write(b"still").unwrap();
    assert_eq!(receive(&*c, 16), b"still");
    assert_eq!(c.peer(), peer.local());
    drop(s);
    assert_eq!(receive(&*c, 16), b"");
    assert!(c.readiness().contains(Ready::HANGUP | Ready::READ));
    // Linger with 0 is a reset.
    let (c, s) = connected();
    c.set_option(SetOption::Linger(Some(0))).unwrap();
    drop(c);
    let mut buf = [0; 16];
    assert_eq!(s.read(&mut buf), Err(Errno::ECONNRESET));
    assert_eq!(s.read(&mut buf), Ok(0));
    assert_eq!(s.write(b"x"), Err(Errno::EPIPE));
}

#[test]
fn connecting_fails_as_it_should() {
    start();
    let c = TcpSocket::open(false);
    assert_eq!(
        c.connect(Some(addr("127.0.0.1:1"))),
        Err(Errno::ECONNREFUSED)
    );
    assert_eq!(
        c.connect(Some(addr("192.0.2.1:1"))),
        Err(Errno::ENETUNREACH)
    );
    assert_eq!(c.connect(Some(addr("[::1]:1"))), Err(Errno::EAFNOSUPPORT));
    assert_eq!(c.peer(), Err(Errno::ENOTCONN));
    assert_eq!(c.read(&mut [0; 1]), Err(Errno::ENOTCONN));
    assert_eq!(c.write(&[0; 1]), Err(Errno::EPIPE));
    assert_eq!(c.shutdown(How::Both), Err(Errno::ENOTCONN));
    assert_eq!(c.accept().map(|_| ()), Err(Errno::EINVAL));
    // As `connect_timeout` does it.
    c.set_nonblocking(true).unwrap();
    let begun = c.connect(Some(addr("127.0.0.1:1")));
    assert!(matches!(
        begun,
        Err(Errno::EINPROGRESS | Errno::ECONNREFUSED)
    ));
    let waiting = c.waiters().unwrap();
    waiting
        .wait_until(None, || {
            c.readiness()
                .contains(Ready::WRITE | Ready::HANGUP)
                .then_some(())
        })
        .unwrap();
    assert_eq!(
        c.option(Name::Error),
        Ok(Value::Number(Errno::ECONNREFUSED.0))
    );
    let (_l, at) = listener("127.0.0.1:0");
    let c = TcpSocket::open(false);
    c.connect(Some(at)).unwrap();
    assert_eq!(c.connect(Some(at)), Err(Errno::EISCONN));
    assert_eq!(c.listen(1), Err(Errno::EINVAL));
}

#[test]
fn addresses_are_had_once() {
    let (l, at) = listener("127.0.0.1:0");
    let other = TcpSocket::open(false);
    other
        .set_option(SetOption::Number(Name::ReuseAddr, 1))
        .unwrap();
    assert_eq!(other.bind(at), Err(Errno::EADDRINUSE));
    assert_eq!(other.bind(addr("10.1.2.3:1")), Err(Errno::EADDRNOTAVAIL));
    assert_eq!(l.bind(at), Err(Errno::EINVAL));
    drop(l);
    other.bind(at).unwrap();
    other.listen(1).unwrap();
    assert_eq!(other.local(), Ok(at));
}

#[test]
fn one_listener_for_both_families() {
    let (l, at) = listener("[::]:0");
    let c = TcpSocket::open(false);
    c.connect(Some(SocketAddr::new([127, 0, 0, 1].into(), at.port())))
        .unwrap();
    let (s, from) = l.accept().unwrap();
    assert_eq!(
        from.ip(),
        "::ffff:127.0.0.1".parse::<core::net::IpAddr>().unwrap()
    );
    let s = s.socket().unwrap();
    assert_eq!(s.local().unwrap().ip().to_string(), "::ffff:127.0.0.1");
    let mapped = TcpSocket::open(true);
    let to: SocketAddr = format!("[::ffff:127.0.0.1]:{}", at.port()).parse().unwrap();
    mapped.connect(Some(to)).unwrap();
    assert_eq!(mapped.peer(), Ok(to));
    // With V6ONLY it takes IPv6 alone, and somebody else may have IPv4.
    let only = TcpSocket::open(true);
    only.set_option(SetOption::Number(Name::V6Only, 1)).unwrap();
    only.bind(addr("[::]:0")).unwrap();
    only.listen(1).unwrap();
    let port = only.local().unwrap().port();
    let c = TcpSocket::open(false);
    let v4 = SocketAddr::new([127, 0, 0, 1].into(), port);
    assert_eq!(c.connect(Some(v4)), Err(Errno::ECONNREFUSED));
    TcpSocket::open(false).bind(v4).unwrap();
}

#[test]
fn who_waits_to_accept_is_told_of_a_shutdown() {
    let (l, _) = listener("127.0.0.1:0");
    let waiter = {
        let l = Arc::clone(&l);
        thread::spawn(move || l.accept().map(|_| ()))
    };
    thread::sleep(Duration::from_millis(20));
    l.shutdown(How::Both).unwrap();
    assert_eq!(waiter.join().unwrap(), Err(Errno::EINVAL));
}

#[test]
fn datagrams() {
    start();
    let a = UdpSocket::open(false).unwrap();
    let b = UdpSocket::open(true).unwrap();
    let mut buf = [0; 100];
    assert_eq!(a.send(b"x", 0, None), Err(Errno::EDESTADDRREQ));
    assert_eq!(a.peer(), Err(Errno::ENOTCONN));
    b.bind(addr("[::]:0")).unwrap();
    let port = b.local().unwrap().port();
    let to = SocketAddr::new([127, 0, 0, 1].into(), port);
    assert_eq!(a.send(b"hello", 0, Some(to)), Ok(5));
    let (n, from) = b.receive(&mut buf, crate::abi::socket::msg::PEEK).unwrap();
    assert_eq!(n, 5);
    let from = from.unwrap();
    assert_eq!(from.ip().to_string(), "::ffff:127.0.0.1");
    assert_eq!(b.receive(&mut buf[..2], 0), Ok((2, Some(from))));
    b.set_nonblocking(true).unwrap();
    assert_eq!(b.read(&mut buf), Err(Errno::EAGAIN));
    // Connected: from its peer only, and told when nobody is there.
    assert_eq!(b.send(b"back", 0, Some(from)), Ok(4));
    a.connect(Some(to)).unwrap();
    assert_eq!((a.peer(), a.local().unwrap().ip()), (Ok(to), to.ip()));
    assert_eq!(a.read(&mut buf), Ok(4));
    assert_eq!(a.send(&[0; 65_508], 0, None), Err(Errno::EMSGSIZE));
    assert_eq!(a.send(b"", 0, None), Ok(0));
    assert_eq!(b.receive(&mut buf, 0).unwrap().0, 0);
    drop(b);
    assert_eq!(a.send(b"x", 0, None), Ok(1));
    assert_eq!(a.read(&mut buf), Err(Errno::ECONNREFUSED));
    assert!(!a.readiness().contains(Ready::READ));
    a.connect(None).unwrap();
    let all = addr("255.255.255.255:9");
    assert_eq!(a.send(b"x", 0, Some(all)), Err(Errno::EACCES));
    assert_eq!(a.listen(1), Err(Errno::EOPNOTSUPP));
}

#[test]
fn options_are_kept() {
    start();
    let t = TcpSocket::open(true);
    let u = UdpSocket::open(false).unwrap();
    let number = |name, n| SetOption::Number(name, n);
    for (name, n) in [
        (Name::NoDelay, 1),
        (Name::KeepAlive, 1),
        (Name::Ttl, 9),
        (Name::V6Only, 1),
        (Name::ReuseAddr, 1),
    ] {
        t.set_option(number(name, n)).unwrap();
        assert_eq!(t.option(name), Ok(Value::Number(n)), "{name:?}");
    }
    for (name, n) in [
        (Name::Broadcast, 1),
        (Name::Ttl, 9),
        (Name::GroupTtl, 3),
        (Name::GroupLoop, 0),
    ] {
        u.set_option(number(name, n)).unwrap();
        assert_eq!(u.option(name), Ok(Value::Number(n)), "{name:?}");
    }
    assert_eq!(t.set_option(number(Name::Ttl, 256)), Err(Errno::EINVAL));
    assert_eq!(
        u.set_option(number(Name::V6Only, 1)),
        Err(Errno::ENOPROTOOPT)
    );
    t.set_option(SetOption::Linger(Some(3))).unwrap();
    assert_eq!(t.option(Name::Linger), Ok(Value::Linger(Some(3))));
}

#[test]
fn through_the_c_interface() {
    use hermit_abi as abi;
    start();
    // SAFETY: these are the functions under test; all pointers are to locals of the right kinds.
    unsafe {
        let l = abi::socket(abi::AF_INET, abi::SOCK_STREAM, 0);
        let one = 1i32;
        let len4 = size_of::<i32>() as u32;
        let reuse = abi::setsockopt(
            l,
            abi::SOL_SOCKET,
            abi::SO_REUSEADDR,
            (&raw const one).cast(),
            len4,
        );
        assert_eq!(reuse, 0);
        let mut at = abi::sockaddr_in {
            sin_family: abi::AF_INET as u8,
            sin_addr: abi::in_addr {
                s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
            },
            ..Default::default()
        };
        let size = size_of::<abi::sockaddr_in>() as u32;
        assert_eq!(abi::bind(l, (&raw const at).cast(), size), 0);
        assert_eq!(abi::bind(l, (&raw const at).cast(), 3), -Errno::EINVAL.0);
        assert_eq!(abi::listen(l, 5), 0);
        let mut len = size;
        assert_eq!(abi::getsockname(l, (&raw mut at).cast(), &mut len), 0);
        assert!(len == size && at.sin_port != 0);
        let c = abi::socket(abi::AF_INET, abi::SOCK_STREAM | abi::SOCK_NONBLOCK, 0);
        assert_eq!(fd::is_nonblocking(c), Ok(true));
        fd::set_nonblocking(c, false).unwrap();
        assert_eq!(abi::connect(c, (&raw const at).cast(), size), 0);
        let mut from = abi::sockaddr_in::default();
        let s = abi::accept(l, (&raw mut from).cast(), &mut len);
        assert!(s >= 0 && from.sin_port != 0);
        assert_eq!(abi::send(c, b"abc".as_ptr().cast(), 3, 0), 3);
        let mut buf = [0u8; 8];
        assert_eq!(abi::recv(s, buf.as_mut_ptr(), 8, 0), 3);
        assert_eq!(&buf[..3], b"abc");
        let time = abi::timeval {
            tv_sec: 1,
            tv_usec: 500_000,
        };
        let size = size_of::<abi::timeval>() as u32;
        let (level, name) = (abi::SOL_SOCKET, abi::SO_RCVTIMEO);
        assert_eq!(
            abi::setsockopt(s, level, name, (&raw const time).cast(), size),
            0
        );
        let mut got = abi::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        let mut len = size;
        assert_eq!(
            abi::getsockopt(s, level, name, (&raw mut got).cast(), &mut len),
            0
        );
        assert_eq!((got.tv_sec, got.tv_usec, len), (1, 500_000, size));
        assert_eq!(
            abi::getsockopt(s, 99, 99, (&raw mut got).cast(), &mut len),
            -Errno::ENOPROTOOPT.0
        );
        assert_eq!(abi::shutdown(s, 9), -Errno::EINVAL.0);
        assert_eq!(abi::listen(-1, 0), -Errno::EBADF.0);
        let mut list = core::ptr::null_mut();
        let hints = abi::addrinfo {
            ai_socktype: abi::SOCK_STREAM,
            ..core::mem::zeroed()
        };
        let none = core::ptr::null();
        assert_eq!(
            abi::getaddrinfo(c"localhost".as_ptr(), none, &hints, &mut list),
            0
        );
        let first = &*list;
        assert_eq!(
            (first.ai_family, first.ai_socktype),
            (abi::AF_INET, abi::SOCK_STREAM)
        );
        let second = &*first.ai_next;
        assert!(second.ai_family == abi::AF_INET6 && second.ai_next.is_null());
        let a = &*second.ai_addr.cast::<abi::sockaddr_in6>();
        assert_eq!(a.sin6_addr.s6_addr[15], 1);
        abi::freeaddrinfo(list);
        let unknown = abi::getaddrinfo(c"example.test".as_ptr(), none, &hints, &mut list);
        assert_eq!(unknown, abi::EAI_AGAIN);
        for fd in [l, c, s] {
            fd::close(fd).unwrap();
        }
    }
}

/// A device that receives without end, for a while; then it is gone.
struct Flood {
    until: Instant,
    gone: Arc<std::sync::atomic::AtomicBool>,
}

impl crate::net::nic::Nic for Flood {
    fn caps(&self) -> crate::net::nic::Caps {
        super::wire::caps(77)
    }
    fn send(
        &mut self,
        _: &[&[u8]],
        _: crate::net::nic::TxMeta,
    ) -> Result<(), crate::net::nic::SendError> {
        Ok(())
    }
    fn tx_ready(&self) -> bool {
        true
    }
    fn receive(
        &mut self,
        budget: usize,
        each: &mut dyn FnMut(&[&[u8]], crate::net::nic::RxMeta),
    ) -> usize {
        if Instant::now() >= self.until {
            return 0;
        }
        // SYNs from everywhere to a port that nobody has.
        for n in 0..budget {
            let mut f = vec![0xff; 6];
            f.extend([
                2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0,
            ]);
            f.extend([10, 7, n as u8, 1, 255, 255, 255, 255]);
            f.extend([0; 20]);
            each(&[&f], Default::default());
        }
        budget
    }
    fn flush(&mut self) {}
    fn idle(&mut self, _: u64) -> crate::net::nic::Idle {
        crate::net::nic::Idle::Gone
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.gone.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_flood_keeps_nobody_out() {
    start();
    let gone = Arc::default();
    let until = Instant::now() + Duration::from_secs(2);
    let flood = Flood {
        until,
        gone: Arc::clone(&gone),
    };
    let number = crate::net::attach(Box::new(flood)).unwrap();
    crate::net::notify();
    let mut calls = 0;
    while Instant::now() < until {
        let (c, s) = connected();
        c.write(b"x").unwrap();
        assert_eq!(receive(&*s, 9), b"x");
        calls += 1;
    }
    assert!(calls > 20, "{calls} in two seconds");
    while !gone.load(std::sync::atomic::Ordering::Relaxed) {
        thread::yield_now();
    }
    assert!(crate::net::detach(number).is_none());
}
