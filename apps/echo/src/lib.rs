//! Echo (RFC 862) over TCP and UDP.

use segue_serve::{Next, Output, Service, Step};
use std::io;
use std::net::UdpSocket;
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

/// An answer to something sent before, such as a closed port.
fn is_of_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionReset | Interrupted | WouldBlock
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_serve::{Config, Server};
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::thread;

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
}
