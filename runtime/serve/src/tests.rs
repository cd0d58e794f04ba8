use super::*;
use proptest::prelude::*;
use segue::handover::{Outgoing, Socket, TakeError};
use segue::preserved::play;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{LazyLock, mpsc};
use std::time::Instant;

/// Answers each line: `big` by a long slice, `quit` by a close, any other by itself.
#[derive(Debug)]
struct Lines {
    patience: Duration,
    /// Whether it has what another one has begun to send.
    has_huge: bool,
}

const fn lines(patience: Duration) -> Lines {
    Lines {
        patience,
        has_huge: true,
    }
}

static BIG: [u8; 300_000] = {
    let mut bytes = [0; 300_000];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = (i % 251) as u8;
        i += 1;
    }
    bytes
};

/// More than buffers of sockets hold.
static HUGE: LazyLock<&'static [u8]> = LazyLock::new(|| vec![7; 40 << 20].leak());

impl Service for Lines {
    type Session = usize;

    fn input(&self, lines: &mut usize, input: &[u8], output: &mut Output) -> Step {
        let mut consumed = 0;
        while let Some(line) = input[consumed..].split_inclusive(|&b| b == b'\n').next()
            && line.ends_with(b"\n")
        {
            if output.is_full() {
                return Step {
                    consumed,
                    next: Next::Flush,
                };
            }
            consumed += line.len();
            *lines += 1;
            match line {
                b"big\n" => output.push_static(&BIG),
                b"huge\n" => output.push_static(&HUGE),
                b"quit\n" => {
                    output.bytes().extend(format!("{lines} lines\n").bytes());
                    return Step {
                        consumed,
                        next: Next::Close,
                    };
                }
                line => output.bytes().extend(line),
            }
        }
        Step {
            consumed,
            next: Next::Wait,
        }
    }

    fn patience(&self, _: &usize, _: usize) -> Duration {
        self.patience
    }

    fn timed_out(&self, _: &mut usize, pending: usize, output: &mut Output) {
        if pending > 0 {
            output.bytes().extend(b"too slow\n");
        }
    }

    fn name_of(&self, slice: &'static [u8]) -> Option<(String, usize)> {
        let big = offset_in(&BIG, slice).map(|at| ("big".into(), at));
        big.or_else(|| Some(("huge".into(), offset_in(&HUGE, slice)?)))
    }

    fn named(&self, name: &str) -> Option<&'static [u8]> {
        match name {
            "big" => Some(&BIG),
            "huge" if self.has_huge => Some(&HUGE),
            _ => None,
        }
    }
}

/// Runs a server on two threads while `test` runs.
fn with_server(patience: Duration, config: Config, test: impl FnOnce(&Server<Lines>, SocketAddr)) {
    let server = Server::new(lines(patience), config).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&listener));
        let stop = Stop(&server);
        test(&server, address);
        drop(stop);
        running.join().unwrap().unwrap();
    });
}

/// Stops the server also when a test fails: else its threads would be waited for for ever.
struct Stop<'a>(&'a Server<Lines>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

const CONFIG: Config = Config {
    threads: 2,
    connections: 3000,
    send_timeout: Duration::from_secs(10),
};
const LONG: Duration = Duration::from_secs(60);

fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut reader = stream.try_clone().unwrap();
    // A peer that reads while it writes, as the server stops reading while it can't write.
    let answer = thread::spawn(move || {
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer).map(|_| answer)
    });
    stream.write_all(request).unwrap();
    answer.join().unwrap().unwrap()
}

#[test]
fn what_is_sent_at_once_is_answered_in_order() {
    with_server(LONG, CONFIG, |server, address| {
        let request: Vec<u8> = (0..20_000)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .chain(*b"quit\nignored\n")
            .collect();
        let answer = exchange(address, &request);
        let lines = request.len() - b"quit\nignored\n".len();
        assert!(answer[..lines] == request[..lines]);
        assert_eq!(&answer[lines..], b"20001 lines\n");
        let stats = server.stats();
        assert_eq!((stats.accepted, stats.sent), (1, answer.len() as u64));
    });
}

#[test]
fn a_request_may_come_byte_by_byte() {
    with_server(LONG, CONFIG, |_, address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in b"slow\nquit\n" {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "slow\n2 lines\n");
    });
}

#[test]
fn long_slices_arrive_whole_between_others() {
    with_server(LONG, CONFIG, |_, address| {
        let answer = exchange(address, b"a\nbig\nb\nbig\nbig\nquit\n");
        let expected = [b"a\n", &BIG[..], b"b\n", &BIG, &BIG, b"6 lines\n"].concat();
        assert!(answer == expected);
    });
}

#[test]
fn a_peer_that_does_not_read_is_not_read_from() {
    let config = Config {
        send_timeout: Duration::from_millis(300),
        ..CONFIG
    };
    with_server(LONG, config, |server, address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        let start = Instant::now();
        let request = b"big\n".repeat(4096);
        let mut taken = 0;
        // It takes a little, then no more, then the connection is ended.
        let error = loop {
            match stream.write(&request) {
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < Duration::from_secs(20));
                    thread::sleep(Duration::from_millis(10));
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ));
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(taken < 64 << 20);
        let stats = server.stats();
        assert_eq!(stats.timeouts, 1);
        assert!(stats.received < 1 << 20, "{stats:?}");
    });
}

#[test]
fn silence_ends_a_connection_but_traffic_keeps_it() {
    with_server(Duration::from_millis(400), CONFIG, |server, address| {
        let mut idle = TcpStream::connect(address).unwrap();
        let mut half = TcpStream::connect(address).unwrap();
        let mut busy = TcpStream::connect(address).unwrap();
        half.write_all(b"never ends").unwrap();
        let start = Instant::now();
        let (sender, ended) = mpsc::channel();
        thread::scope(|scope| {
            for (stream, expected) in [(&mut idle, ""), (&mut half, "too slow\n")] {
                let sender = sender.clone();
                scope.spawn(move || {
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).unwrap();
                    assert_eq!(answer, expected);
                    sender.send(start.elapsed()).unwrap();
                });
            }
            let mut answer = [0; 5];
            while start.elapsed() < Duration::from_millis(1000) {
                busy.write_all(b"here\n").unwrap();
                busy.read_exact(&mut answer).unwrap();
                thread::sleep(Duration::from_millis(100));
            }
        });
        for time in ended.try_iter() {
            assert!(time >= Duration::from_millis(390), "{time:?}");
        }
        assert_eq!(server.stats().timeouts, 2);
    });
}

#[test]
fn a_thousand_idle_connections_and_a_limit() {
    let config = Config {
        connections: 1000,
        ..CONFIG
    };
    with_server(LONG, config, |server, address| {
        let mut open: Vec<TcpStream> = (0..1000)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for index in [0, 0, 999] {
            let stream = &mut open[index];
            stream.write_all(b"x\n").unwrap();
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).unwrap();
        }
        assert_eq!(server.stats().open, 1000);
        let mut refused = TcpStream::connect(address).unwrap();
        assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0);
        assert_eq!(server.stats().refused, 1);
        open.truncate(10);
        let start = Instant::now();
        while server.stats().open > 10 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(exchange(address, b"quit\n"), b"1 lines\n");
    });
}

#[test]
fn the_last_answer_is_read_though_the_peer_goes_on_sending() {
    with_server(LONG, CONFIG, |_, address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"quit\n").unwrap();
        // Sent after the server has closed its half: without lingering, a reset would come back.
        thread::sleep(Duration::from_millis(50));
        for _ in 0..20 {
            stream.write_all(&[b'x'; 1000]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "1 lines\n");
    });
}

#[test]
fn draining_answers_what_was_asked_and_closes_what_is_idle() {
    with_server(LONG, CONFIG, |server, address| {
        let mut idle = TcpStream::connect(address).unwrap();
        let mut half = TcpStream::connect(address).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        half.write_all(b"ha").unwrap();
        // More than the sockets' buffers hold: it is being sent while the server drains.
        let asked = 40;
        slow.write_all(&b"big\n".repeat(asked)).unwrap();
        let start = Instant::now();
        while server.stats().accepted < 3 || server.stats().received < 2 + 4 * asked as u64 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(5));
        }
        server.drain();
        let mut answer = String::new();
        idle.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "");
        half.write_all(b"lf\n").unwrap();
        half.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "half\n");
        let mut bytes = Vec::new();
        slow.read_to_end(&mut bytes).unwrap();
        assert!(bytes == BIG.repeat(asked));
        drop((idle, half, slow));
        // By itself: nobody has stopped it.
        while server.stats().open > 0 {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn a_drained_server_ends_by_itself() {
    let server = Server::new(lines(LONG), CONFIG).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&listener));
        let _stop = Stop(&server);
        assert_eq!(exchange(address, b"quit\n"), b"1 lines\n");
        server.drain();
        let start = Instant::now();
        while !running.is_finished() {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
        running.join().unwrap().unwrap();
    });
}

/// What a client does.
#[derive(Clone, Debug)]
enum Do {
    Line(usize),
    Big,
    /// Waits so many ms, in the middle of a line, if it is in one.
    Wait(u64),
}

fn doings() -> impl Strategy<Value = Vec<Do>> {
    let one = prop_oneof![
        6 => (0..3000_usize).prop_map(Do::Line),
        1 => Just(Do::Big),
        3 => (0..4_u64).prop_map(Do::Wait),
    ];
    proptest::collection::vec(one, 0..40)
}

/// What is sent in pieces, and what has to come back.
fn script(doings: &[Do]) -> (Vec<(Vec<u8>, u64)>, Vec<u8>) {
    let mut pieces = vec![(Vec::new(), 0)];
    let mut answer = Vec::new();
    let mut lines = 1;
    for (number, one) in doings.iter().enumerate() {
        let piece = &mut pieces.last_mut().unwrap().0;
        match one {
            Do::Line(len) => {
                let mut line = format!("{number} ").into_bytes();
                line.resize(line.len() + len, b'a' + (number % 26) as u8);
                line.push(b'\n');
                answer.extend(&line);
                piece.extend(line);
                lines += 1;
            }
            Do::Big => {
                piece.extend(b"big\n");
                answer.extend(BIG);
                lines += 1;
            }
            Do::Wait(ms) => {
                // All but the last few bytes go before it.
                let late = piece.split_off(piece.len().saturating_sub(3));
                pieces.push((late, *ms));
            }
        }
    }
    pieces.last_mut().unwrap().0.extend(b"quit\n");
    answer.extend(format!("{lines} lines\n").bytes());
    (pieces, answer)
}

/// Does it on a connection of its own, and says whether each answer came once and in order.
fn client(address: SocketAddr, doings: &[Do]) -> Result<usize, String> {
    let (pieces, expected) = script(doings);
    let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
    stream.set_nodelay(true).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (piece, ms) in pieces {
                thread::sleep(Duration::from_millis(ms));
                if writer.write_all(&piece).is_err() {
                    return;
                }
            }
        });
        stream.read_to_end(&mut answer).map_err(|e| e.to_string())
    })?;
    let same = answer.iter().zip(&expected).take_while(|(a, b)| a == b);
    match same.count() {
        n if n == expected.len() && n == answer.len() => Ok(n),
        n => Err(format!("{n} of {} bytes were right", expected.len())),
    }
}

/// All clients at once; the bytes that came back.
fn clients(address: SocketAddr, all: &[Vec<Do>]) -> Result<usize, String> {
    thread::scope(|scope| {
        let run = |doings: &'_ Vec<Do>| {
            let doings = doings.clone();
            scope.spawn(move || client(address, &doings))
        };
        let running: Vec<_> = all.iter().map(run).collect();
        running.into_iter().map(|one| one.join().unwrap()).sum()
    })
}

/// As an app does it: the listener and the connections go through a value.
fn pass(server: &Server<Lines>, listener: &TcpListener) -> (Server<Lines>, TcpListener) {
    let mut out = Outgoing::default();
    out.put("lines", &(Socket::new(listener), server.pause()))
        .unwrap();
    play::values(&out);
    let next = Server::new(lines(LONG), CONFIG).unwrap();
    let mut before = segue::handover();
    let listener = next.take(&mut before, "lines").unwrap().unwrap();
    (next, listener)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_pause_under_load_loses_nothing(
        all in proptest::collection::vec(doings(), 1..12),
        pauses in proptest::collection::vec((1..4_u64, 0..3_u64), 1..20),
    ) {
        with_server(LONG, CONFIG, |server, address| {
            let ended = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for (run, pause) in pauses.iter().cycle() {
                        thread::sleep(Duration::from_millis(*run));
                        server.pause();
                        thread::sleep(Duration::from_millis(*pause));
                        server.resume();
                        if ended.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
                let result = clients(address, &all);
                ended.store(true, Ordering::Relaxed);
                assert!(result.is_ok(), "{result:?}");
            });
        });
    }

    #[test]
    fn every_request_is_answered_once_from_server_to_server(
        all in proptest::collection::vec(doings(), 1..12),
        switches in proptest::collection::vec(0..5_u64, 1..12),
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let first = Server::new(lines(LONG), CONFIG).unwrap();
        let (received, stats) = thread::scope(|scope| {
            let load = scope.spawn(|| clients(address, &all));
            let run = |server: &Server<Lines>, listener: &TcpListener| {
                let (server, listener) = (server.clone(), listener.try_clone().unwrap());
                scope.spawn(move || server.run(&listener))
            };
            let (mut server, mut listener) = (first, listener);
            let mut running = run(&server, &listener);
            for ms in switches {
                thread::sleep(Duration::from_millis(ms));
                let (next, next_listener) = pass(&server, &listener);
                server.stop();
                running.join().unwrap().unwrap();
                (server, listener) = (next, next_listener);
                running = run(&server, &listener);
            }
            let received = load.join().unwrap();
            // It may see the last close a little later than its peer.
            let start = Instant::now();
            while server.stats().open > 0 && start.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(1));
            }
            server.stop();
            running.join().unwrap().unwrap();
            (received, server.stats())
        });
        let sent: usize = all.iter().flat_map(|d| script(d).0).map(|p| p.0.len()).sum();
        let expected = Stats {
            accepted: all.len() as u64,
            received: sent as u64,
            sent: received.unwrap() as u64,
            ..Stats::default()
        };
        prop_assert_eq!(stats, expected);
    }
}

#[test]
fn nothing_is_answered_while_paused_and_idle_threads_need_not_wake() {
    with_server(LONG, CONFIG, |server, address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"one\n").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        server.pause();
        stream.write_all(b"two\n").unwrap();
        let mut new = TcpStream::connect(address).unwrap();
        new.write_all(b"new\n").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(stream.read(&mut answer).is_err());
        server.resume();
        stream.set_read_timeout(None).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"two\n");
        new.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"new\n");
    });
}

#[test]
fn idle_connections_are_cheap_to_hand_over() {
    with_server(LONG, CONFIG, |server, address| {
        let mut open: Vec<TcpStream> = (0..1000)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let start = Instant::now();
        while server.stats().open < 1000 {
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(1));
        }
        let bytes = rmp_serde::to_vec_named(&server.pause()).unwrap();
        assert!(bytes.len() < 20 * 1000, "{}", bytes.len());
        server.resume();
        // The process's table is not a kernel's: descriptors of its own.
        let _taken: Handover<usize> = rmp_serde::from_slice(&bytes).unwrap();
        let mut answer = [0; 2];
        open[999].write_all(b"x\n").unwrap();
        open[999].read_exact(&mut answer).unwrap();
    });
}

#[test]
fn patience_goes_on_from_server_to_server() {
    let patience = Duration::from_millis(1500);
    let server = Server::new(lines(patience), CONFIG).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    thread::scope(|scope| {
        let first = scope.spawn(|| server.run(&listener));
        let stop_first = Stop(&server);
        let start = Instant::now();
        while server.stats().open < 1 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(1));
        }
        let (next, listener) = pass(&server, &listener);
        drop(stop_first);
        first.join().unwrap().unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| next.run(&listener));
            let stop = Stop(&next);
            // Of this one's it would have for a minute.
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
            assert!(start.elapsed() < LONG / 2);
            drop(stop);
            second.join().unwrap().unwrap();
        });
    });
}

#[test]
fn what_is_being_sent_and_not_known_is_refused() {
    with_server(LONG, CONFIG, |server, address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"huge\n").unwrap();
        // Until the peer's buffer is full.
        let start = Instant::now();
        let mut sent = (0, 0);
        while sent.0 == 0 || sent.0 != sent.1 {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(50));
            sent = (server.stats().sent, sent.0);
        }
        let mut out = Outgoing::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        out.put("lines", &(Socket::new(&listener), server.pause()))
            .unwrap();
        play::values(&out);
        let other = Lines {
            has_huge: false,
            ..lines(LONG)
        };
        let next = Server::new(other, CONFIG).unwrap();
        let error = next.take(&mut segue::handover(), "lines").unwrap_err();
        assert_eq!(
            error,
            AdoptError::Unknown {
                name: "huge".into()
            }
        );
        // Here it goes on.
        server.resume();
        let mut answer = vec![0; HUGE.len()];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer == *HUGE);
    });
}

#[test]
fn what_is_no_server_is_said_to_be_so_and_nothing_is_none() {
    let mut out = Outgoing::default();
    out.put("lines", "text").unwrap();
    play::values(&out);
    let server = Server::new(lines(LONG), CONFIG).unwrap();
    let mut before = segue::handover();
    assert!(server.take(&mut before, "others").unwrap().is_none());
    let error = server.take(&mut before, "lines").unwrap_err();
    assert!(
        matches!(error, AdoptError::Take(TakeError::WrongType { .. })),
        "{error}"
    );
}
