//! Sockets over the loopback: what std can ask of one.

use crate::ensure;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(30);
const LONG: Duration = crate::PATIENCE;

fn at<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e} ({:?})", e.kind()))
}

fn fails<T>(what: &str, result: io::Result<T>, kinds: &[ErrorKind]) -> Result<(), String> {
    match result {
        Err(e) if kinds.contains(&e.kind()) => Ok(()),
        Err(e) => Err(format!("{what}: {e} ({:?})", e.kind())),
        Ok(_) => Err(format!("{what}: no error")),
    }
}

/// A connection, from both ends.
fn pair(listener: &TcpListener) -> Result<(TcpStream, TcpStream), String> {
    let to = at("local_addr", listener.local_addr())?;
    let client = at("connect", TcpStream::connect(to))?;
    let (server, from) = at("accept", listener.accept())?;
    let own = at("local_addr", client.local_addr())?;
    ensure(from == own, || format!("{from} instead of {own}"))?;
    let peer = at("peer_addr", client.peer_addr())?;
    ensure(peer == to, || format!("{peer} instead of {to}"))?;
    for end in [&client, &server] {
        at("set_read_timeout", end.set_read_timeout(Some(LONG)))?;
    }
    Ok((client, server))
}

/// A megabyte both ways at once, then half-closed ends.
pub fn streams() -> Result<String, String> {
    for host in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let listener = at("bind", TcpListener::bind(SocketAddr::new(host, 0)))?;
        let (client, server) = pair(&listener)?;
        let content: Vec<u8> = (0..1_000_000u32).map(|i| (i / 3 % 253) as u8).collect();
        let got = thread::scope(|scope| {
            let ends = [&client, &server].map(|end| {
                let content = &content;
                let writer = scope.spawn(move || {
                    let mut end = end;
                    end.write_all(content)?;
                    end.shutdown(Shutdown::Write)
                });
                let reader = scope.spawn(move || {
                    let (mut end, mut got) = (end, Vec::new());
                    end.read_to_end(&mut got).map(|_| got)
                });
                (writer, reader)
            });
            ends.map(|(writer, reader)| {
                let written = writer.join().map_err(|_| "a panic".to_owned());
                let read = reader.join().map_err(|_| "a panic".to_owned());
                written.and_then(|r| at("write", r))?;
                read.and_then(|r| at("read", r))
            })
        });
        for got in got {
            ensure(got? == content, || "another content".into())?;
        }
        let after = (&client).write(b"x");
        fails("after shutdown", after, &[ErrorKind::BrokenPipe])?;
    }
    Ok(String::new())
}

/// Options, time limits, and what does not block.
pub fn options() -> Result<String, String> {
    let listener = at("bind", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let (mut client, mut server) = pair(&listener)?;
    at("set_nodelay", client.set_nodelay(true))?;
    ensure(at("nodelay", client.nodelay())?, || "not set".into())?;
    at("set_ttl", client.set_ttl(77))?;
    let ttl = at("ttl", client.ttl())?;
    ensure(ttl == 77, || format!("ttl {ttl}"))?;

    at("set_read_timeout", client.set_read_timeout(Some(SHORT)))?;
    let set = at("read_timeout", client.read_timeout())?;
    ensure(set == Some(SHORT), || format!("{set:?}"))?;
    let begun = Instant::now();
    let late = [ErrorKind::WouldBlock, ErrorKind::TimedOut];
    fails("time-out", client.read(&mut [0]), &late)?;
    let took = begun.elapsed();
    ensure(took >= SHORT, || format!("it took only {took:?}"))?;

    at("write", server.write_all(b"abc"))?;
    let mut two = [0; 2];
    at("read_timeout", client.set_read_timeout(Some(LONG)))?;
    ensure(at("peek", client.peek(&mut two))? >= 1, || "nothing".into())?;
    let mut three = [0; 3];
    at("read", client.read_exact(&mut three))?;
    ensure(&three == b"abc", || format!("{three:?}"))?;
    at("set_nonblocking", client.set_nonblocking(true))?;
    fails(
        "nothing there",
        client.read(&mut two),
        &[ErrorKind::WouldBlock],
    )?;
    at("set_nonblocking", listener.set_nonblocking(true))?;
    fails("nobody there", listener.accept(), &[ErrorKind::WouldBlock])?;
    ensure(at("take_error", client.take_error())?.is_none(), || {
        "an error".into()
    })?;

    let twin = at("try_clone", server.try_clone())?;
    drop(server);
    at("write", (&twin).write_all(b"z"))?;
    at("set_nonblocking", client.set_nonblocking(false))?;
    at("read", client.read_exact(&mut two[..1]))?;
    drop(twin);
    let end = at("read", client.read(&mut two))?;
    ensure(end == 0, || format!("{end} bytes after the end"))?;
    Ok(format!("timeout_us={}", took.as_micros()))
}

/// Connections that do not come about, and ports that are taken.
pub fn refusals() -> Result<String, String> {
    let listener = at("bind", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let taken = at("local_addr", listener.local_addr())?;
    fails("taken", TcpListener::bind(taken), &[ErrorKind::AddrInUse])?;
    drop(listener);
    let refused = TcpStream::connect_timeout(&taken, LONG);
    fails("refused", refused, &[ErrorKind::ConnectionRefused])?;
    let foreign = TcpListener::bind((Ipv4Addr::new(192, 0, 2, 1), 80));
    fails("foreign", foreign, &[ErrorKind::AddrNotAvailable])?;

    // Closed with bytes unread: the other end is told.
    let listener = at("bind", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let (client, mut server) = pair(&listener)?;
    at("write", server.write_all(b"unread"))?;
    at("peek", client.peek(&mut [0]))?;
    drop(client);
    let reset = server.read(&mut [0]);
    fails("unread", reset, &[ErrorKind::ConnectionReset])?;
    Ok(String::new())
}

/// As many connections as a server has, each of which is used.
pub fn many() -> Result<String, String> {
    const COUNT: usize = 200;
    let listener = at("bind", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let to = at("local_addr", listener.local_addr())?;
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let ends: Result<Vec<_>, _> = listener.incoming().take(COUNT).collect();
            for mut end in at("accept", ends)? {
                let mut number = [0; 8];
                at("read", end.read_exact(&mut number))?;
                at("write", end.write_all(&number))?;
            }
            Ok::<(), String>(())
        });
        let mut clients = Vec::new();
        for _ in 0..COUNT {
            clients.push(at("connect", TcpStream::connect(to))?);
        }
        for (number, end) in clients.iter_mut().enumerate().rev() {
            at("write", end.write_all(&(number as u64).to_le_bytes()))?;
        }
        for (number, end) in clients.iter_mut().enumerate() {
            let mut got = [0; 8];
            at("read", end.read_exact(&mut got))?;
            ensure(u64::from_le_bytes(got) == number as u64, || {
                format!("{got:?} instead of {number}")
            })?;
        }
        server.join().map_err(|_| "a panic")?
    })?;
    Ok(format!("connections={COUNT}"))
}

pub fn datagrams() -> Result<String, String> {
    for host in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let bind = || at("bind", UdpSocket::bind(SocketAddr::new(host, 0)));
        let (one, two) = (bind()?, bind()?);
        let to = at("local_addr", two.local_addr())?;
        for socket in [&one, &two] {
            at("set_read_timeout", socket.set_read_timeout(Some(LONG)))?;
        }
        let mut buffer = [0; 2000];
        for len in [0, 1, 1400, 1999] {
            at("send_to", one.send_to(&vec![7; len], to))?;
            let (got, from) = at("recv_from", two.recv_from(&mut buffer))?;
            let whole = got == len && buffer[..got].iter().all(|&b| b == 7);
            ensure(whole, || format!("{got} bytes of {len}"))?;
            ensure(from == one.local_addr().unwrap_or(to), || {
                format!("from {from}")
            })?;
        }
        at("connect", one.connect(to))?;
        at("send", one.send(b"hello"))?;
        let peeked = at("peek_from", two.peek_from(&mut buffer))?.0;
        let (got, from) = at("recv_from", two.recv_from(&mut buffer[..3]))?;
        ensure((peeked, got) == (5, 3), || format!("{peeked} and {got}"))?;
        at("send_to", two.send_to(b"back", from))?;
        let got = at("recv", one.recv(&mut buffer))?;
        ensure(&buffer[..got] == b"back", || format!("{got} bytes"))?;
        at("set_nonblocking", one.set_nonblocking(true))?;
        fails("nothing", one.recv(&mut buffer), &[ErrorKind::WouldBlock])?;
    }
    Ok(String::new())
}
