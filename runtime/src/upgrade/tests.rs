//! The service over real TCP, with a domain that does as if.

use super::client::{Client, ClientError, Uploaded};
use super::protocol::{
    Answer, Command, MAX_DATA_REQUEST, MAX_REQUEST, Occasion, Opening, Refused, Request, Signed,
    Status, Stays,
};
use super::server::Bucket;
use super::wire::{self, WireError};
use super::*;
use crate::kernel::image::testing::{self, TestImage};
use crate::kernel::image::{
    BuildId, Bundle, Digest, Ident, Name, Place, Policy, Running, SigningKey, TrustedKeys, Version,
};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

const LIMIT: Duration = Duration::from_secs(20);

/// A domain that does as if.
struct Fake {
    generation: AtomicU64,
    trusted: [u8; 32],
    ident: Ident,
    free: AtomicU64,
    outcomes: Mutex<VecDeque<Result<(), Stays>>>,
    switches: Mutex<Vec<(Digest, How)>>,
    way_back: AtomicBool,
    began: Instant,
    /// Told when a switch begins, which then never ends.
    hold: Mutex<Option<std::sync::mpsc::Sender<()>>>,
}

impl Fake {
    fn another(&self) -> Self {
        Self {
            generation: AtomicU64::new(self.generation.load(Ordering::SeqCst)),
            trusted: self.trusted,
            ident: self.ident,
            free: AtomicU64::new(64 << 20),
            outcomes: Mutex::default(),
            switches: Mutex::default(),
            way_back: AtomicBool::new(false),
            began: self.began,
            hold: Mutex::default(),
        }
    }
}

impl Domain for Arc<Fake> {
    fn id(&self) -> [u8; 16] {
        [7; 16]
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    fn build(&self) -> BuildId {
        self.ident.build
    }

    fn policy<'a>(&'a self, downgrade: Option<&'a [u8]>) -> Policy<'a> {
        Policy {
            keys: TrustedKeys::new(&self.trusted),
            running: Some(Running {
                name: self.ident.name,
                version: self.ident.version,
                build: self.ident.build,
                abi: self.ident.abi,
                other_app: false,
                downgrade,
                place: Place {
                    domain: Some([7; 16]),
                    fleet: None,
                },
                now: 1_000_000,
            }),
        }
    }

    fn memory_free(&self) -> u64 {
        self.free.load(Ordering::SeqCst)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    fn status(&self) -> Status {
        Status {
            generation: self.generation(),
            build: self.ident.build,
            name: self.ident.name.to_string(),
            ..Status::default()
        }
    }

    fn switch(&self, bundle: &[u8], how: &How) -> Result<(), Stays> {
        let digest = Digest::of(&[bundle]);
        self.switches.lock().unwrap().push((digest, how.clone()));
        if let Some(sender) = self.hold.lock().unwrap().take() {
            sender.send(()).unwrap();
            loop {
                thread::park();
            }
        }
        let outcome = self.outcomes.lock().unwrap().pop_front();
        let outcome = outcome.unwrap_or(Ok(()));
        if outcome.is_ok() {
            self.generation.fetch_add(1, Ordering::SeqCst);
            self.way_back.store(true, Ordering::SeqCst);
        }
        outcome
    }

    fn confirm(&self) -> bool {
        self.way_back.swap(false, Ordering::SeqCst)
    }

    fn has_way_back(&self) -> bool {
        self.way_back.load(Ordering::SeqCst)
    }

    fn roll_back(&self) -> Result<(), Stays> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Who makes bundles, who is an operator, and who is neither.
fn release() -> SigningKey {
    testing::key(1)
}

fn operator() -> SigningKey {
    testing::key(2)
}

fn stranger() -> SigningKey {
    testing::key(3)
}

/// A bundle of some 100 KB.
fn bundle_of(name: &str, version: &str, key: Option<&SigningKey>) -> Vec<u8> {
    let ident = Ident {
        name: Name::new(name).unwrap(),
        version: Version::new(version).unwrap(),
        ..testing::ident().unwrap()
    };
    let image = TestImage {
        ident: Some(ident),
        setup: Some(vec![3; 100_000]),
        ..TestImage::default()
    };
    image.bundle_with(key, |_| ())
}

fn bundle(version: &str) -> Vec<u8> {
    bundle_of("test", version, Some(&release()))
}

fn config() -> Config {
    Config::new("127.0.0.1:0".parse().unwrap()).operator(PublicKey::of(&operator()))
}

struct Service {
    domain: Arc<Fake>,
    shared: super::Service<Arc<Fake>>,
}

impl Service {
    fn start(config: Config) -> Self {
        Self::try_start(config).unwrap()
    }

    fn try_start(config: Config) -> Result<Self, ListenError> {
        let bytes = bundle("1.0.0");
        let running = Bundle::parse(&bytes).unwrap();
        let running = running.verify(&Policy::OPEN).unwrap();
        let domain = Arc::new(Fake {
            generation: AtomicU64::new(1),
            trusted: PublicKey::of(&release()).0,
            ident: *running.image.ident(),
            free: AtomicU64::new(64 << 20),
            outcomes: Mutex::default(),
            switches: Mutex::default(),
            way_back: AtomicBool::new(false),
            began: Instant::now(),
            hold: Mutex::default(),
        });
        let shared = serve(Arc::clone(&domain), config, None)?;
        Ok(Self { domain, shared })
    }

    fn connect(&self) -> Client {
        Client::connect(self.shared.address(), LIMIT).unwrap()
    }

    fn raw(&self) -> TcpStream {
        TcpStream::connect(self.shared.address()).unwrap()
    }

    /// What the client of `bundle` is told.
    fn upload(&self, bundle: &[u8]) -> Result<Uploaded, ClientError> {
        self.connect()
            .upload(bundle, None, &operator(), &mut |_| ())
    }

    /// Uploads and switches, over one connection.
    fn upgrade(&self, bundle: &[u8]) -> Result<Answer, ClientError> {
        let mut client = self.connect();
        let uploaded = client.upload(bundle, None, &operator(), &mut |_| ())?;
        assert_eq!(uploaded, Uploaded::Complete);
        let answer = client.command(switch(bundle), &operator())?;
        // Until the image that was asked is gone.
        let end = client.answer(LIMIT);
        assert!(matches!(end, Err(ClientError::Connection(_))), "{end:?}");
        Ok(answer)
    }

    fn switches(&self) -> usize {
        self.domain.switches.lock().unwrap().len()
    }
}

fn switch(bundle: &[u8]) -> Command {
    Command::Switch {
        bundle: Digest::of(&[bundle]),
        probation_ms: 60_000,
        must_confirm: true,
        downgrade: None,
    }
}

fn begin(bundle: &[u8]) -> Command {
    Command::Upload {
        bundle: Digest::of(&[bundle]),
        len: bundle.len() as u64,
        downgrade: None,
    }
}

fn refused<T: fmt::Debug>(result: Result<T, ClientError>) -> Refused {
    match result {
        Err(ClientError::Refused(refused)) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_operator_replaces_the_image_and_confirms_it() {
    let service = Service::start(config());
    let next = bundle("1.1.0");
    let mut client = service.connect();
    assert_eq!(client.hello().generation, 1);
    let mut seen = Vec::new();
    let uploaded = client.upload(&next, None, &operator(), &mut |n| seen.push(n));
    assert_eq!(uploaded.unwrap(), Uploaded::Complete);
    assert!(seen.is_sorted() && seen.last() == Some(&(next.len() as u64)));
    let answer = client.command(switch(&next), &operator()).unwrap();
    assert_eq!(answer, Answer::Switching);
    // The next image does not know of the connection.
    assert!(matches!(
        client.answer(LIMIT),
        Err(ClientError::Connection(WireError::Closed))
    ));
    let (digest, how) = service.domain.switches.lock().unwrap()[0].clone();
    assert_eq!(digest, Digest::of(&[&next]));
    assert!(how.must_confirm && how.probation == Duration::from_secs(60));

    let mut client = service.connect();
    assert_eq!(client.hello().generation, 2);
    let build = client.hello().build;
    let confirm = Command::Confirm { build };
    for wanted in [true, false] {
        let answer = client.command(confirm.clone(), &operator()).unwrap();
        assert!(matches!(answer, Answer::Confirmed { ended, .. } if ended == wanted));
    }
    assert_eq!(
        refused(client.command(Command::RollBack { build }, &operator())),
        Refused::NoWayBack
    );
}

#[test]
fn a_failed_switch_is_told_with_its_reason() {
    let service = Service::start(config());
    let stays = Stays::Resumed {
        why: "panic at=src/main.rs:3".into(),
        console: "hello\n".into(),
    };
    let outcome = Err(stays.clone());
    service.domain.outcomes.lock().unwrap().push_back(outcome);
    let next = bundle("1.1.0");
    let mut client = service.connect();
    client
        .upload(&next, None, &operator(), &mut |_| ())
        .unwrap();
    client.command(switch(&next), &operator()).unwrap();
    assert_eq!(client.answer(LIMIT).unwrap(), Answer::Stays(stays));
    let status = service.connect().status().unwrap();
    assert_eq!(status.stayed.as_deref(), Some("panic at=src/main.rs:3"));
    assert_eq!(status.generation, 1);
    // It is there still.
    assert_eq!(service.upload(&next).unwrap(), Uploaded::Complete);
}

#[test]
fn the_image_that_runs_is_not_replaced_by_itself() {
    let service = Service::start(config());
    let same = bundle("1.0.0");
    assert_eq!(service.upload(&same).unwrap(), Uploaded::Runs);
    assert_eq!(service.switches(), 0);
    assert_eq!(service.connect().status().unwrap().upload, None);
}

#[test]
fn a_bundle_is_refused_by_its_head() {
    let service = Service::start(config());
    let why = |bundle: &[u8]| match refused(service.upload(bundle)) {
        Refused::Bundle { why } => why,
        other => panic!("{other:?}"),
    };
    let head = |bundle: &[u8]| {
        // All that is ever sent.
        let mut client = service.connect();
        client.command(begin(bundle), &operator()).unwrap();
        let bytes = &bundle[..2048];
        client.send(&Request::Data { offset: 0, bytes }).unwrap();
        refused(client.answer(LIMIT))
    };
    for (bad, word) in [
        (bundle_of("test", "1.1.0", None), "not signed"),
        (
            bundle_of("test", "1.1.0", Some(&stranger())),
            "does not trust",
        ),
        (
            bundle_of("other", "1.1.0", Some(&release())),
            "of app other",
        ),
        (bundle("0.9.0"), "older"),
        (vec![1; 4096], "not a Segue bundle"),
    ] {
        assert!(why(&bad).contains(word), "{}", why(&bad));
        assert!(matches!(head(&bad), Refused::Bundle { .. }));
    }
    let good = bundle("1.1.0");
    service.domain.free.store(10_000, Ordering::SeqCst);
    assert!(matches!(head(&good), Refused::Memory { free: 10_000, .. }));
    service.domain.free.store(1 << 30, Ordering::SeqCst);
    // An image that was altered can only be found at its end.
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert!(matches!(
        refused(service.upload(&altered)),
        Refused::Bundle { .. }
    ));
    assert_eq!(service.upload(&good).unwrap(), Uploaded::Complete);
    assert_eq!(service.switches(), 0);
}

#[test]
fn what_does_not_fit_is_refused_at_once() {
    let service = Service::start(config().max_bundle(100_000));
    let next = bundle("1.1.0");
    assert!(next.len() > 100_000);
    let wanted = Refused::TooLarge {
        len: next.len() as u64,
        most: 100_000,
    };
    assert_eq!(refused(service.upload(&next)), wanted);
    for len in [0, 100_000, u64::MAX] {
        let mut client = service.connect();
        let command = Command::Upload {
            bundle: Digest::default(),
            len,
            downgrade: None,
        };
        let answer = client.command(command, &operator());
        assert_eq!(answer.is_ok(), len == 100_000, "{len}: {answer:?}");
    }
}

#[test]
fn what_arrives_is_what_was_signed() {
    let service = Service::start(config());
    let (next, other) = (bundle("1.1.0"), bundle("1.2.0"));
    assert_eq!(next.len(), other.len());
    let mut client = service.connect();
    client.command(begin(&next), &operator()).unwrap();
    let mut offset = 0;
    let answer = loop {
        let bytes = &other[offset..(offset + 10_000).min(other.len())];
        let request = Request::Data {
            offset: offset as u64,
            bytes,
        };
        client.send(&request).unwrap();
        offset += bytes.len();
        match client.answer(LIMIT) {
            Ok(Answer::Received { .. }) => {}
            answer => break answer,
        }
    };
    assert_eq!(refused(answer), Refused::Digest);
    let answer = service.connect().command(switch(&next), &operator());
    assert_eq!(refused(answer), Refused::NotUploaded);
}

#[test]
fn a_cut_upload_goes_on_where_it_was() {
    let service = Service::start(config());
    let next = bundle("1.1.0");
    let mut client = service.connect();
    client.command(begin(&next), &operator()).unwrap();
    let half = 40_000;
    for at in (0..half).step_by(10_000) {
        let request = Request::Data {
            offset: at as u64,
            bytes: &next[at..at + 10_000],
        };
        client.send(&request).unwrap();
        client.answer(LIMIT).unwrap();
    }
    let upload = service.connect().status().unwrap().upload.unwrap();
    assert_eq!(upload.received, half as u64);
    // One connection is cut in the middle of a frame; of another nobody has noticed that it is.
    for cut in [false, true] {
        let mut second = service.connect();
        let answer = second.command(begin(&next), &operator()).unwrap();
        assert!(matches!(answer, Answer::Receive { offset, .. } if offset == half as u64));
        if cut {
            drop(second);
        }
    }
    // Who was overtaken is told.
    let request = Request::Data {
        offset: half as u64,
        bytes: &next[half..half + 1],
    };
    client.send(&request).unwrap();
    assert_eq!(refused(client.answer(LIMIT)), Refused::Busy);
    let mut first = None;
    let mut client = service.connect();
    let uploaded = client.upload(&next, None, &operator(), &mut |n| {
        first.get_or_insert(n);
    });
    assert_eq!(uploaded.unwrap(), Uploaded::Complete);
    assert_eq!(first, Some(half as u64));
    // Nothing is sent twice.
    assert_eq!(service.upload(&next).unwrap(), Uploaded::Complete);
    let answer = service.connect().command(switch(&next), &operator());
    assert_eq!(answer.unwrap(), Answer::Switching);
}

#[test]
fn one_uploads_at_a_time() {
    let service = Service::start(config());
    let (next, other) = (bundle("1.1.0"), bundle("1.2.0"));
    let mut first = service.connect();
    first.command(begin(&next), &operator()).unwrap();
    assert_eq!(refused(service.upload(&other)), Refused::Busy);
    // The first has given up: the place is free.
    drop(first);
    let until = Instant::now() + LIMIT;
    while service.upload(&other).is_err() {
        assert!(Instant::now() < until);
        thread::sleep(Duration::from_millis(10));
    }
    let answer = service.connect().command(switch(&next), &operator());
    assert_eq!(refused(answer), Refused::NotUploaded);
}

#[test]
fn data_has_to_come_in_order() {
    let service = Service::start(config());
    let next = bundle("1.1.0");
    for (offset, len) in [(1, 10), (0, 0), (u64::MAX, 10)] {
        let mut client = service.connect();
        client.command(begin(&next), &operator()).unwrap();
        let bytes = &next[..len];
        client.send(&Request::Data { offset, bytes }).unwrap();
        let wanted = Refused::OutOfOrder { expected: 0 };
        assert_eq!(refused(client.answer(LIMIT)), wanted, "{offset}");
    }
    // Without an upload it is refused, too, and long frames are not read then.
    for len in [10, MAX_REQUEST] {
        let mut client = service.connect();
        let request = Request::Data {
            offset: 0,
            bytes: &next[..len],
        };
        client.send(&request).unwrap();
        let why = refused(client.answer(LIMIT));
        assert!(matches!(why, Refused::NotUploaded | Refused::Garbled));
    }
}

#[test]
fn only_operators_change_anything() {
    let service = Service::start(config());
    let next = bundle("1.1.0");
    assert_eq!(service.upload(&next).unwrap(), Uploaded::Complete);
    let build = service.connect().hello().build;
    service.domain.way_back.store(true, Ordering::SeqCst);
    // The key that signs bundles is none of an operator's.
    for key in [stranger(), release()] {
        for command in [
            begin(&next),
            switch(&next),
            Command::Confirm { build },
            Command::RollBack { build },
        ] {
            let answer = service.connect().command(command, &key);
            assert!(matches!(
                refused(answer),
                Refused::Signature { known: false, .. }
            ));
        }
    }
    assert_eq!(service.switches(), 0);
    assert!(service.domain.way_back.load(Ordering::SeqCst));
    assert_eq!(service.domain.generation(), 1);
}

/// Sends a signed command as it is; gives the answer.
fn replay(client: &mut Client, signed: &Signed) -> Result<Answer, ClientError> {
    client.send(&Request::Signed(Box::new(signed.clone())))?;
    client.answer(LIMIT)
}

#[test]
fn a_signature_counts_once_and_there_only() {
    let service = Service::start(config());
    service.domain.way_back.store(true, Ordering::SeqCst);
    let mut client = service.connect();
    let hello = client.hello().clone();
    let build = hello.build;
    let occasion = Occasion {
        domain: hello.domain,
        generation: hello.generation,
        nonce: hello.nonce,
    };
    let confirm = Command::Confirm { build };
    let signed = |occasion| Signed::new(confirm.clone(), occasion, &operator());
    let good = signed(&occasion);
    // For another domain, generation or nonce; of another command.
    let mut others = vec![
        signed(&Occasion {
            domain: [8; 16],
            ..occasion
        }),
        signed(&Occasion {
            generation: 2,
            ..occasion
        }),
        signed(&Occasion {
            nonce: [0; 32],
            ..occasion
        }),
    ];
    let mut changed = good.clone();
    changed.command = Command::RollBack { build };
    others.push(changed);
    for other in others {
        let mut client = service.connect();
        let refused = refused(replay(&mut client, &other));
        assert!(matches!(refused, Refused::Signature { known: true, .. }));
    }
    assert!(matches!(
        replay(&mut client, &good).unwrap(),
        Answer::Confirmed { ended: true, .. }
    ));
    // The same bytes again, over the same connection and over another.
    service.domain.way_back.store(true, Ordering::SeqCst);
    for client in [&mut client, &mut service.connect()] {
        let refused = refused(replay(client, &good));
        assert!(matches!(refused, Refused::Signature { known: true, .. }));
    }
    assert!(service.domain.way_back.load(Ordering::SeqCst));
}

#[test]
fn switches_are_limited() {
    let service = Service::start(config().switches(2, Duration::from_secs(1000)));
    let next = bundle("1.1.0");
    for _ in 0..2 {
        assert_eq!(service.upgrade(&next).unwrap(), Answer::Switching);
    }
    let Refused::TooOften { wait_ms } = refused(service.upgrade(&next)) else {
        panic!();
    };
    assert!((900_000..=1_000_000).contains(&wait_ms), "{wait_ms}");
    assert_eq!(service.switches(), 2);
}

/// Two services one after the other, as in two images of one domain.
#[test]
fn the_service_goes_on_in_the_next_image() {
    let address = "127.0.0.1:0".parse().unwrap();
    let limited = Config::new(address)
        .operator(PublicKey::of(&operator()))
        .switches(1, Duration::from_secs(1000));
    let service = Service::start(limited.clone());
    let next = bundle("1.1.0");
    let mut asker = service.connect();
    let uploaded = asker.upload(&next, None, &operator(), &mut |_| ());
    assert_eq!(uploaded.unwrap(), Uploaded::Complete);
    // The image is replaced in the middle of the call, as far as its sockets are concerned.
    let (sender, block) = std::sync::mpsc::channel();
    *service.domain.hold.lock().unwrap() = Some(sender);
    assert_eq!(
        asker.command(switch(&next), &operator()).unwrap(),
        Answer::Switching
    );
    block.recv_timeout(LIMIT).unwrap();
    let mut outgoing = Outgoing::default();
    service.shared.hand_over(&mut outgoing).unwrap();
    let block: &'static [u8] = outgoing.block().unwrap().leak();
    let mut incoming = Incoming::new(Some(block));
    let second = Fake {
        generation: AtomicU64::new(2),
        ..service.domain.another()
    };
    let mut there = limited;
    there.address = service.shared.address();
    let second = serve(Arc::new(second), there, Some(&mut incoming)).unwrap();
    assert_eq!(second.address(), service.shared.address());
    // The connection lives, and hears of the generation that it talks to.
    let Answer::Hello(hello) = asker.answer(LIMIT).unwrap() else {
        panic!();
    };
    assert_eq!(hello.generation, 2);
    let status = asker.status().unwrap();
    assert_eq!(status.booted, Some(service.domain.ident.build));
    let build = hello.build;
    let answer = asker.command(Command::Confirm { build }, &operator());
    assert!(matches!(answer.unwrap(), Answer::Confirmed { .. }));
    // What was let through before counts still.
    let uploaded = asker.upload(&next, None, &operator(), &mut |_| ());
    assert_eq!(uploaded.unwrap(), Uploaded::Complete);
    let answer = asker.command(switch(&next), &operator());
    assert!(matches!(refused(answer), Refused::TooOften { .. }));
}

#[test]
fn the_bucket_fills_again() {
    let every = Duration::from_secs(10);
    let second = 1_000_000_000;
    let mut bucket = Bucket::full(2, 5 * second);
    for wait in [Ok(()), Ok(()), Err(9 * second)] {
        assert_eq!(bucket.take(2, every, 6 * second), wait);
    }
    assert_eq!(bucket.take(2, every, 15 * second), Ok(()));
    assert_eq!(bucket.take(2, every, 16 * second), Err(9 * second));
    // Never more than it holds, and a clock that goes back is none.
    for wait in [true, true, false] {
        assert_eq!(bucket.take(2, every, u64::MAX).is_ok(), wait);
    }
    assert!(bucket.take(2, every, 0).is_err());
}

#[test]
fn status_can_be_hidden() {
    let service = Service::start(config().hide_status());
    assert_eq!(refused(service.connect().status()), Refused::NoStatus);
    let mut client = service.connect();
    let build = client.hello().build;
    client
        .command(Command::Confirm { build }, &operator())
        .unwrap();
    assert_eq!(client.status().unwrap().name, "test");
}

#[test]
fn without_operators_there_is_none() {
    let address = "127.0.0.1:0".parse().unwrap();
    let error = Service::try_start(Config::new(address)).err().unwrap();
    assert!(matches!(error, ListenError::NoOperators));
    let weak = PublicKey([0; 32]);
    let error = Service::try_start(Config::new(address).operator(weak));
    assert!(matches!(error.err().unwrap(), ListenError::Key(key) if key == weak));
    // A laboratory's: the bundle has to be good all the same.
    let service = Service::start(Config::new(address).unsafe_open());
    let next = bundle("1.1.0");
    let mut client = service.connect();
    let uploaded = client.upload(&next, None, &stranger(), &mut |_| ());
    assert_eq!(uploaded.unwrap(), Uploaded::Complete);
    let unsigned = bundle_of("test", "1.1.0", None);
    let mut client = service.connect();
    let error = client.upload(&unsigned, None, &stranger(), &mut |_| ());
    assert!(matches!(refused(error), Refused::Bundle { .. }));
}

/// How long it takes until the server closes.
fn until_closed(mut stream: TcpStream) -> Duration {
    let start = Instant::now();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = [0; 1024];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return start.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return start.elapsed();
            }
            Err(error) => panic!("it stays open: {error}"),
        }
    }
}

#[test]
fn who_is_slow_is_closed() {
    let limit = Duration::from_millis(500);
    let service = Service::start(config().first_command(limit));
    // Says nothing; half an opening; an opening; a frame's length; a byte now and then.
    let opening = Opening::OURS.encode();
    let starts: [&[u8]; 4] = [
        &[],
        &opening[..5],
        &opening,
        &[&opening[..], &[100, 0, 0, 0]].concat(),
    ];
    for start in starts {
        let mut stream = service.raw();
        stream.write_all(start).unwrap();
        let took = until_closed(stream);
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    let stream = service.raw();
    let writer = stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        let bytes = [&opening[..], &[200, 1, 0, 0], &[0; 400]].concat();
        for byte in bytes {
            if (&writer).write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(until_closed(stream) < Duration::from_secs(5));
    drip.join().unwrap();
    service.connect().status().unwrap();
}

#[test]
fn a_slow_upload_is_given_up() {
    let limit = Duration::from_millis(300);
    let service = Service::start(config().upload_limit(limit));
    let next = bundle("1.1.0");
    let mut client = service.connect();
    client.command(begin(&next), &operator()).unwrap();
    let mut part = |offset: usize| {
        let request = Request::Data {
            offset: offset as u64,
            bytes: &next[offset..offset + 1000],
        };
        client.send(&request).unwrap();
        client.answer(LIMIT)
    };
    part(0).unwrap();
    thread::sleep(limit);
    assert_eq!(refused(part(1000)), Refused::TooSlow);
    // What is left of it does not keep others from theirs.
    assert_eq!(service.upload(&next).unwrap(), Uploaded::Complete);
}

#[test]
fn a_thousand_connections_keep_no_operator_out() {
    let service = Service::start(config().connections(4));
    let flood: Vec<_> = (0..1000).map(|_| service.raw()).collect();
    let start = Instant::now();
    let next = bundle("1.1.0");
    let until = start + LIMIT;
    // It takes a while until those before it were looked at.
    loop {
        let mut client = match Client::connect(service.shared.address(), Duration::from_secs(5)) {
            Ok(client) => client,
            Err(error) => {
                assert!(Instant::now() < until, "{error}");
                continue;
            }
        };
        match client.upload(&next, None, &operator(), &mut |_| ()) {
            Ok(uploaded) => {
                assert_eq!(uploaded, Uploaded::Complete);
                break;
            }
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
    drop(flood);
    assert_eq!(service.upgrade(&next).unwrap(), Answer::Switching);
}

#[test]
fn other_versions_are_told_which_there_are() {
    let service = Service::start(config());
    let stream = service.raw();
    let newer = Opening { min: 2, max: 9 };
    let until = Instant::now() + LIMIT;
    wire::write(&stream, &newer.encode(), until).unwrap();
    let mut room = vec![0; 1000];
    let frame = wire::read_frame(&stream, &mut room, 1000, until).unwrap();
    let answer = Answer::decode(frame).unwrap();
    assert_eq!(answer, Answer::Refused(Refused::Version { min: 1, max: 1 }));
    // One that speaks something else is told nothing.
    let mut stream = service.raw();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert!(said.is_empty());
}

#[test]
fn keys_are_read_as_keygen_writes_them() {
    use base64::Engine;
    let key = PublicKey::of(&operator());
    let word = base64::engine::general_purpose::STANDARD.encode(key.0);
    let text = format!("# Segue public key {}\n\n  {word} mine\n{word}\n", key.id());
    assert_eq!(parse_keys(&text), Ok(vec![key]));
    assert_eq!(parse_keys("# none\n"), Err(KeysError::None));
    for bad in ["AAAA", "-----BEGIN PUBLIC KEY-----", "?"] {
        let text = format!("\n{bad}\n");
        assert_eq!(parse_keys(&text), Err(KeysError::Line { line: 2 }));
    }
    // A key of small order signs anything.
    let weak = format!("{}=", "A".repeat(43));
    assert_eq!(parse_keys(&weak), Err(KeysError::Line { line: 1 }));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Request::decode(&bytes);
        let _ = Answer::decode(&bytes);
        let _ = parse_keys(&String::from_utf8_lossy(&bytes));
        if let Some(opening) = bytes.first_chunk().and_then(Opening::decode) {
            prop_assert_eq!(&opening.encode()[..], &bytes[..Opening::LEN]);
        }
    }

    #[test]
    fn requests_are_read_as_they_were_written(
        offset: u64,
        bytes in prop::collection::vec(any::<u8>(), 0..1000),
        nonce: [u8; 32],
        generation: u64,
        probation_ms: u64,
        must_confirm: bool,
        cut in 0..400usize,
        flip in 0..400usize,
    ) {
        let occasion = Occasion { domain: [1; 16], generation, nonce };
        let command = Command::Switch {
            bundle: Digest([9; 32]),
            probation_ms,
            must_confirm,
            downgrade: Some(bytes.iter().copied().take(200).collect()),
        };
        let signed = Signed::new(command, &occasion, &operator());
        let keys = [PublicKey::of(&stranger()), PublicKey::of(&operator())];
        prop_assert!(signed.is_of(&keys, &occasion));
        prop_assert!(!signed.is_of(&keys[..1], &occasion));
        let mut room = [0; MAX_DATA_REQUEST + 4];
        for request in [
            Request::Signed(Box::new(signed)),
            Request::Data { offset, bytes: &bytes },
            Request::Status,
        ] {
            let frame = request.encode(&mut room).unwrap().to_vec();
            let is_data = matches!(request, Request::Data { .. });
            prop_assert!(is_data || frame.len() <= MAX_REQUEST);
            prop_assert_eq!(&Request::decode(&frame[4..]).unwrap(), &request);
            prop_assert!(Request::decode(&frame[4..frame.len() - 1]).is_err());
            let mut changed = frame[4..].to_vec();
            let at = flip % changed.len();
            changed[at] ^= 1 << (flip % 8);
            // Whatever it is now, nobody has signed it.
            if let Ok(Request::Signed(signed)) = Request::decode(&changed) {
                prop_assert!(!signed.is_of(&keys, &occasion));
            }
            let _ = Request::decode(&frame[cut.min(frame.len())..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The server stays, whatever comes after an opening.
    #[test]
    fn garbage_changes_nothing(
        good_opening: bool,
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 1..4),
        honest_lengths: bool,
    ) {
        static SERVICE: std::sync::LazyLock<Service> =
            std::sync::LazyLock::new(|| Service::start(config()));
        let mut stream = SERVICE.raw();
        let mut bytes = Vec::new();
        if good_opening {
            bytes.extend(Opening::OURS.encode());
        }
        for frame in &frames {
            if honest_lengths {
                bytes.extend((frame.len() as u32).to_le_bytes());
            }
            bytes.extend(frame);
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        prop_assert_eq!(SERVICE.domain.generation(), 1);
        prop_assert_eq!(SERVICE.switches(), 0);
        prop_assert!(!SERVICE.domain.way_back.load(Ordering::SeqCst));
    }
}
