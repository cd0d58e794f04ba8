use super::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::time::Instant;

/// Answers each line: `big` by a long slice, `quit` by a close, any other by itself.
#[derive(Debug)]
struct Lines {
    patience: Duration,
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
}

/// Runs a server on two threads while `test` runs.
fn with_server(patience: Duration, config: Config, test: impl FnOnce(&Server<Lines>, SocketAddr)) {
    let server = Server::new(Lines { patience }, config).unwrap();
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
    let server = Server::new(Lines { patience: LONG }, CONFIG).unwrap();
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
