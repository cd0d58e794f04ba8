//! Echo (RFC 862) over TCP and UDP; discard (RFC 863) and chargen (RFC 864) over TCP, which are
//! what bulk transfers are measured with.

use segue_serve::{Next, Output, Service, Step};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// Over TCP: each byte comes back.
#[derive(Clone, Copy, Debug)]
pub struct Echo;

impl Service for Echo {
    type Session = ();

    fn input(&self, (): &mut (), input: &[u8], output: &mut Output) -> Step {
        output.bytes().extend_from_slice(input);
        Step {
            consumed: input.len(),
            next: Next::Wait,
        }
    }

    fn patience(&self, (): &(), _: usize) -> Duration {
        Duration::from_secs(3600)
    }

    fn timed_out(&self, (): &mut (), _: usize, _: &mut Output) {}
}

/// Over UDP: each datagram goes back to its sender. Returns when the socket is broken.
///
/// # Errors
/// When receiving fails for another reason than a peer's.
pub fn datagrams(socket: &UdpSocket) -> io::Result<()> {
    let mut buf = vec![0; 64 * 1024];
    loop {
        let (len, peer) = match socket.recv_from(&mut buf) {
            Ok(received) => received,
            Err(error) if is_of_peer(&error) => continue,
            Err(error) => return Err(error),
        };
        // Whether it arrives is UDP's affair: a peer may be gone or too far to send to.
        let _ = socket.send_to(buf.get(..len).unwrap_or_default(), peer);
    }
}

/// Connections that [`each`] serves at a time, a thread each.
const AT_A_TIME: usize = 16;

/// Serves one connection to its end.
pub type Serve = fn(TcpStream) -> io::Result<()>;

/// Runs `serve` in a thread for each connection, a few at a time. Returns when the listener is
/// broken.
///
/// # Errors
/// When accepting fails for another reason than a peer's.
pub fn each(listener: &TcpListener, serve: Serve) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_of_peer(&error) => continue,
            Err(error) => return Err(error),
        };
        // More than that are closed at once: they would only share what there is.
        if open.load(Ordering::Relaxed) >= AT_A_TIME {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let ended = Arc::clone(&open);
        let started = thread::Builder::new().spawn(move || {
            // How it ends is the peer's affair.
            let _ = serve(stream);
            ended.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Throws away what comes until the peer has sent all.
///
/// # Errors
/// The connection's.
pub fn discard(mut stream: TcpStream) -> io::Result<()> {
    let mut buf = vec![0; 128 * 1024];
    while stream.read(&mut buf)? > 0 {}
    stream.shutdown(Shutdown::Write)
}

/// Sends lines of characters until the peer is gone.
///
/// # Errors
/// The connection's, in the end.
pub fn chargen(mut stream: TcpStream) -> io::Result<()> {
    let lines = lines().repeat(16);
    loop {
        stream.write_all(&lines)?;
    }
}

/// The pattern that RFC 864 recommends, until it repeats itself: 95 lines of 72 characters.
fn lines() -> Vec<u8> {
    let printable = || b' '..=b'~';
    let line = |start| {
        let characters = printable().cycle().skip(start).take(72);
        characters.chain(*b"\r\n").collect::<Vec<u8>>()
    };
    (0..printable().len()).flat_map(line).collect()
}

/// An answer to something sent before, such as a closed port.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | WouldBlock
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_serve::{Config, Server};

    #[test]
    fn bytes_come_back() {
        let server = Server::new(Echo, Config::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| server.run(&listener));
            let sent: Vec<u8> = (0..8_000_000_u32).map(|i| (i % 249) as u8).collect();
            let mut stream = TcpStream::connect(address).unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut received = Vec::new();
            thread::scope(|scope| {
                scope.spawn(|| {
                    writer.write_all(&sent).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                stream.read_to_end(&mut received).unwrap();
            });
            assert!(received == sent);
            server.stop();
            running.join().unwrap().unwrap();
        });
    }

    #[test]
    fn datagrams_come_back_to_their_senders() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        thread::spawn(move || datagrams(&socket));
        let peers: Vec<UdpSocket> = (0..3)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        for (peer, len) in peers.iter().zip([0, 1, 60_000]) {
            peer.set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            peer.send_to(&vec![len as u8; len], address).unwrap();
        }
        for (peer, len) in peers.iter().zip([0, 1, 60_000]) {
            let mut buf = vec![0; 65_536];
            assert_eq!(peer.recv_from(&mut buf).unwrap(), (len, address));
            assert!(buf[..len].iter().all(|b| *b == len as u8));
        }
    }

    #[test]
    fn characters_come_in_lines_and_what_is_sent_is_taken() {
        let start = |serve| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            thread::spawn(move || each(&listener, serve));
            TcpStream::connect(address).unwrap()
        };
        let mut source = start(chargen);
        let mut text = vec![0; 20 * lines().len() + 74];
        source.read_exact(&mut text).unwrap();
        for (i, line) in text.chunks(74).enumerate() {
            assert_eq!(line[0], b' ' + (i % 95) as u8);
            assert!(
                line[..72]
                    .windows(2)
                    .all(|w| w[1] == w[0] + 1 || w == b"~ ")
            );
            assert_eq!(&line[72..], b"\r\n");
        }

        let mut sink = start(discard);
        sink.write_all(&text).unwrap();
        sink.shutdown(Shutdown::Write).unwrap();
        // It closes when it has all.
        assert_eq!(sink.read(&mut [0; 1]).unwrap(), 0);
    }
}
