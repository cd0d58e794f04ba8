//! Echo (RFC 862) over TCP and UDP; discard (RFC 863) and chargen (RFC 864) over TCP, which are
//! what bulk transfers are measured with; and checksum, which tells what it was sent: how many
//! bytes, and their CRC-32.

use crc32fast::Hasher;
use polling::{Event, Events, PollMode, Poller};
use segue_serve::{Next, Output, Service, Step, offset_in};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(3600);

const fn all(input: &[u8]) -> Step {
    Step {
        consumed: input.len(),
        next: Next::Wait,
    }
}

/// Over TCP: each byte comes back.
#[derive(Clone, Copy, Debug)]
pub struct Echo;

impl Service for Echo {
    type Session = ();

    fn input(&self, (): &mut (), input: &[u8], output: &mut Output) -> Step {
        output.bytes().extend_from_slice(input);
        all(input)
    }

    fn patience(&self, (): &(), _: usize) -> Duration {
        PATIENCE
    }

    fn timed_out(&self, (): &mut (), _: usize, _: &mut Output) {}
}

/// Throws away what comes until the peer has sent all.
#[derive(Clone, Copy, Debug)]
pub struct Discard;

impl Service for Discard {
    type Session = ();

    fn input(&self, (): &mut (), input: &[u8], _: &mut Output) -> Step {
        all(input)
    }

    fn patience(&self, (): &(), _: usize) -> Duration {
        PATIENCE
    }

    fn timed_out(&self, (): &mut (), _: usize, _: &mut Output) {}
}

/// When the peer has sent all it is told `bytes=… crc32=…` of it, and a newline.
#[derive(Clone, Copy, Debug)]
pub struct Checksum;

/// Of what has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    bytes: u64,
    crc: u32,
}

impl Service for Checksum {
    type Session = Sum;

    fn input(&self, sum: &mut Sum, input: &[u8], _: &mut Output) -> Step {
        let mut hasher = Hasher::new_with_initial(sum.crc);
        hasher.update(input);
        *sum = Sum {
            bytes: sum.bytes + input.len() as u64,
            crc: hasher.finalize(),
        };
        all(input)
    }

    fn ended(&self, sum: &mut Sum, output: &mut Output) {
        // Writing to a Vec can't fail.
        let _ = writeln!(output.bytes(), "bytes={} crc32={:08x}", sum.bytes, sum.crc);
    }

    fn patience(&self, _: &Sum, _: usize) -> Duration {
        PATIENCE
    }

    fn timed_out(&self, _: &mut Sum, _: usize, _: &mut Output) {}
}

/// Sends lines of characters until the peer is gone.
#[derive(Clone, Copy, Debug)]
pub struct Chargen {
    /// So many that sending them is worth while; after them it begins anew.
    lines: &'static [u8],
}

impl Default for Chargen {
    fn default() -> Self {
        Self {
            lines: lines().repeat(16).leak(),
        }
    }
}

impl Service for Chargen {
    type Session = ();

    const SPEAKS_FIRST: bool = true;

    fn input(&self, (): &mut (), input: &[u8], output: &mut Output) -> Step {
        output.push_static(self.lines);
        Step {
            consumed: input.len(),
            next: Next::Flush,
        }
    }

    /// The lines are the same in all images.
    fn name_of(&self, slice: &'static [u8]) -> Option<(String, usize)> {
        Some((LINES.into(), offset_in(self.lines, slice)?))
    }

    fn named(&self, name: &str) -> Option<&'static [u8]> {
        (name == LINES).then_some(self.lines)
    }

    fn patience(&self, (): &(), _: usize) -> Duration {
        PATIENCE
    }

    fn timed_out(&self, (): &mut (), _: usize, _: &mut Output) {}
}

/// The name of what [`Chargen`] sends.
const LINES: &str = "95 lines, 16 times";

/// The pattern that RFC 864 recommends, until it repeats itself: 95 lines of 72 characters.
fn lines() -> Vec<u8> {
    let printable = || b' '..=b'~';
    let line = |start| {
        let characters = printable().cycle().skip(start).take(72);
        characters.chain(*b"\r\n").collect::<Vec<u8>>()
    };
    (0..printable().len()).flat_map(line).collect()
}

/// Over UDP: each datagram goes back to its sender.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    poller: Poller,
    /// Held while a datagram is in hand.
    paused: Mutex<bool>,
    resumed: Condvar,
}

/// Datagrams that are sent back before somebody else may want to pause.
const AT_ONCE: usize = 64;
/// How long a datagram waits for room, and when it is tried again: after a switch more come at once
/// than a backend takes answers at once.
const ROOM_WITHIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(1);

impl Datagrams {
    /// Of this socket.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            poller: Poller::new()?,
            paused: Mutex::new(false),
            resumed: Condvar::new(),
        })
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No datagram is in hand from here on until [`Datagrams::resume`].
    pub fn pause(&self) {
        *self.lock() = true;
    }

    /// It goes on.
    pub fn resume(&self) {
        *self.lock() = false;
        self.resumed.notify_all();
    }

    /// Sends datagrams back. Returns when the socket is broken.
    ///
    /// # Errors
    /// When receiving fails for another reason than a peer's.
    pub fn run(&self) -> io::Result<()> {
        // SAFETY: it is deleted below; on an error return nobody waits any more.
        unsafe {
            (self.poller).add_with_mode(&self.socket, Event::readable(0), PollMode::Level)?;
        }
        let result = self.serve();
        self.poller.delete(&self.socket)?;
        result
    }

    fn serve(&self) -> io::Result<()> {
        let mut buf = vec![0; 64 * 1024];
        let mut events = Events::new();
        loop {
            events.clear();
            self.poller.wait(&mut events, None)?;
            let waited = self.resumed.wait_while(self.lock(), |paused| *paused);
            let _in_hand = waited.unwrap_or_else(PoisonError::into_inner);
            let start = Instant::now();
            for _ in 0..AT_ONCE {
                let (len, peer) = match self.socket.recv_from(&mut buf) {
                    Ok(received) => received,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if is_of_peer(&error) => continue,
                    Err(error) => return Err(error),
                };
                // Whether it arrives is UDP's affair: a peer may be gone or too far to send to.
                let datagram = buf.get(..len).unwrap_or_default();
                if !patiently(ROOM_WITHIN, || self.socket.send_to(datagram, peer)) {
                    eprintln!("echo: udp: dropped=1 to={peer} reason=\"no room to send\"");
                }
                // Where there is hardly any room, not each of them has that long.
                if start.elapsed() >= ROOM_WITHIN {
                    break;
                }
            }
        }
    }
}

/// Sends as soon as there is room; false if there was none in time.
fn patiently<T>(limit: Duration, mut send: impl FnMut() -> io::Result<T>) -> bool {
    let start = Instant::now();
    while send().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
        if start.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(RETRY);
    }
    true
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
    use segue::handover::{Outgoing, Socket};
    use segue::preserved::play;
    use segue_serve::{Config, Server};
    use std::io::Read;
    use std::iter;
    use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::thread;

    /// Runs servers of one kind, one after the other, `switches` of them with the connections of the
    /// one before, while `test` runs.
    fn over_switches<S: Service<Session: Serialize + for<'a> Deserialize<'a>>>(
        service: impl Fn() -> S,
        switches: usize,
        test: impl FnOnce(SocketAddr) + Send,
    ) {
        let mut listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::new(service(), Config::default()).unwrap();
        thread::scope(|scope| {
            let run = |server: &Server<S>, listener: &TcpListener| {
                let (server, listener) = (server.clone(), listener.try_clone().unwrap());
                scope.spawn(move || server.run(&listener))
            };
            let mut running = run(&server, &listener);
            let test = scope.spawn(move || test(address));
            for _ in 0..switches {
                thread::sleep(Duration::from_millis(20));
                let mut out = Outgoing::default();
                let value = (Socket::new(&listener), server.pause());
                out.put("all", &value).unwrap();
                play::values(&out);
                let next = Server::new(service(), Config::default()).unwrap();
                listener = next.take(&mut segue::handover(), "all").unwrap().unwrap();
                server.stop();
                running.join().unwrap().unwrap();
                server = next;
                running = run(&server, &listener);
            }
            let result = test.join();
            server.stop();
            running.join().unwrap().unwrap();
            result.unwrap();
        });
    }

    fn numbers(len: u32) -> Vec<u8> {
        (0..len).map(|i| (i % 249) as u8).collect()
    }

    #[test]
    fn bytes_come_back() {
        over_switches(
            || Echo,
            5,
            |address| {
                let sent = numbers(24_000_000);
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
            },
        );
    }

    #[test]
    fn what_is_sent_is_summed_up() {
        over_switches(
            || Checksum,
            5,
            |address| {
                let sent = numbers(100_000);
                let mut stream = TcpStream::connect(address).unwrap();
                for piece in sent.chunks(500) {
                    stream.write_all(piece).unwrap();
                    thread::sleep(Duration::from_micros(500));
                }
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                let crc = crc32fast::hash(&sent);
                assert_eq!(answer, format!("bytes=100000 crc32={crc:08x}\n"));
            },
        );
    }

    #[test]
    fn characters_come_in_lines() {
        over_switches(Chargen::default, 5, |address| {
            let mut source = TcpStream::connect(address).unwrap();
            let mut piece = vec![0; 20 * lines().len()];
            for _ in 0..20 {
                source.read_exact(&mut piece).unwrap();
                for (i, line) in piece.chunks(74).enumerate() {
                    assert_eq!(line[0], b' ' + (i % 95) as u8);
                    let mut pairs = line[..72].windows(2);
                    assert!(pairs.all(|w| w[1] == w[0] + 1 || w == b"~ "));
                    assert_eq!(&line[72..], b"\r\n");
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
    }

    #[test]
    fn what_is_thrown_away_is_taken() {
        over_switches(
            || Discard,
            2,
            |address| {
                let mut sink = TcpStream::connect(address).unwrap();
                sink.write_all(&numbers(8_000_000)).unwrap();
                sink.shutdown(Shutdown::Write).unwrap();
                // It closes when it has all.
                assert_eq!(sink.read(&mut [0; 1]).unwrap(), 0);
            },
        );
    }

    #[test]
    fn a_datagram_waits_for_room_but_not_for_ever() {
        let limit = Duration::from_secs(3600);
        let full = || io::Error::from(io::ErrorKind::WouldBlock);
        // So many that no small number of attempts is enough.
        let mut room = iter::repeat_with(|| Err(full())).take(100).chain([Ok(())]);
        assert!(patiently(limit, || room.next().unwrap()));
        assert!(room.next().is_none());
        assert!(!patiently(Duration::ZERO, || Err::<(), _>(full())));
        // What can't be sent at all is nobody's to wait for.
        let mut gone = iter::once(io::ErrorKind::NetworkUnreachable.into());
        assert!(patiently(limit, || Err::<(), _>(gone.next().unwrap())));
    }

    #[test]
    fn datagrams_come_back_to_their_senders_but_not_in_a_pause() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let datagrams: &'static _ = Box::leak(Box::new(Datagrams::new(socket).unwrap()));
        thread::spawn(|| datagrams.run());
        let peers: Vec<UdpSocket> = (0..3)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let mut buf = vec![0; 65_536];
        for pause in [false, true] {
            if pause {
                datagrams.pause();
            }
            for (peer, len) in peers.iter().zip([0, 1, 60_000]) {
                peer.send_to(&vec![len as u8; len], address).unwrap();
            }
            if pause {
                let limit = Some(Duration::from_millis(50));
                peers[0].set_read_timeout(limit).unwrap();
                assert!(peers[0].recv_from(&mut buf).is_err());
                datagrams.resume();
            }
            for (peer, len) in peers.iter().zip([0, 1, 60_000]) {
                peer.set_read_timeout(Some(Duration::from_secs(10)))
                    .unwrap();
                assert_eq!(peer.recv_from(&mut buf).unwrap(), (len, address));
                assert!(buf[..len].iter().all(|b| *b == len as u8));
            }
        }
    }
}
