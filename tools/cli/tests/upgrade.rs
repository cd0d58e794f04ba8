//! Upgrades by the command itself, of a domain that does as if.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use segue::upgrade::protocol::{Probation, Status, Stays, Switch};
use segue::upgrade::{Config, Domain, How, serve};
use segue_kernel::image::testing::{self, TestImage};
use segue_kernel::image::{
    BuildId, Bundle, Ident, Place, Policy, PublicKey, Running, TrustedKeys, Version,
};
use serde_json::Value;
use tempfile::TempDir;

/// What changes in the domain.
#[derive(Clone)]
struct State {
    generation: u64,
    ident: Ident,
    before: Option<Ident>,
    must_confirm: bool,
    /// What becomes of the next switch.
    stays: Option<Stays>,
}

struct Fake {
    state: Mutex<State>,
    trusted: [u8; 32],
    began: Instant,
}

impl Fake {
    fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }
}

/// The service has a part of it, the test the other.
#[derive(Clone)]
struct Shared(Arc<Fake>);

fn ident_of(bundle: &[u8]) -> Ident {
    let bundle = Bundle::parse(bundle).unwrap();
    *bundle.verify(&Policy::OPEN).unwrap().image.ident()
}

impl Domain for Shared {
    fn id(&self) -> [u8; 16] {
        [7; 16]
    }

    fn generation(&self) -> u64 {
        self.0.state().generation
    }

    fn build(&self) -> BuildId {
        self.0.state().ident.build
    }

    fn policy<'a>(&'a self, downgrade: Option<&'a [u8]>) -> Policy<'a> {
        let ident = self.0.state().ident;
        Policy {
            keys: TrustedKeys::new(&self.0.trusted),
            running: Some(Running {
                name: ident.name,
                version: ident.version,
                build: ident.build,
                abi: ident.abi,
                other_app: false,
                downgrade,
                place: Place::default(),
                now: 0,
            }),
        }
    }

    fn memory_free(&self) -> u64 {
        64 << 20
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_nanos()).unwrap()
    }

    fn status(&self) -> Status {
        let state = self.0.state();
        Status {
            generation: state.generation,
            name: state.ident.name.to_string(),
            version: state.ident.version.to_string(),
            build: state.ident.build,
            probation: state.before.map(|_| Probation {
                left_ms: 60_000,
                must_confirm: state.must_confirm,
            }),
            switch: (state.generation > 1).then(|| Switch {
                from: state.generation - 1,
                to: state.generation,
                blackout_us: 312,
                parts: vec![("quiesce".into(), 12)],
                handed: vec![("regions".into(), 2)],
                ..Switch::default()
            }),
            ..Status::default()
        }
    }

    fn switch(&self, bundle: &[u8], how: &How) -> Result<(), Stays> {
        let mut state = self.0.state.lock().unwrap();
        if let Some(stays) = state.stays.take() {
            return Err(stays);
        }
        state.generation += 1;
        state.before = Some(state.ident);
        state.must_confirm = how.must_confirm;
        state.ident = ident_of(bundle);
        Ok(())
    }

    fn confirm(&self) -> bool {
        self.0.state.lock().unwrap().before.take().is_some()
    }

    fn has_way_back(&self) -> bool {
        self.0.state().before.is_some()
    }

    fn roll_back(&self) -> Result<(), Stays> {
        let mut state = self.0.state.lock().unwrap();
        if let Some(before) = state.before.take() {
            state.generation += 1;
            state.ident = before;
        }
        Ok(())
    }
}

struct Test {
    folder: TempDir,
    domain: Shared,
    address: SocketAddr,
}

impl Test {
    /// A domain that runs 1.0.0; operator's and stranger's keys; bundles of three versions.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for version in ["0.9.0", "1.0.0", "1.1.0"] {
            let ident = Ident {
                version: Version::new(version).unwrap(),
                ..testing::ident().unwrap()
            };
            let image = TestImage {
                ident: Some(ident),
                setup: Some(vec![3; 100_000]),
                ..TestImage::default()
            };
            let bundle = image.bundle_with(Some(&testing::key(1)), |_| ());
            fs::write(path(version), bundle).unwrap();
        }
        let running = fs::read(path("1.0.0")).unwrap();
        let operator = segue_image::keys::generate(&path("operator")).unwrap();
        segue_image::keys::generate(&path("stranger")).unwrap();
        let state = State {
            generation: 1,
            ident: ident_of(&running),
            before: None,
            must_confirm: false,
            stays: None,
        };
        let domain = Shared(Arc::new(Fake {
            state: Mutex::new(state),
            trusted: PublicKey::of(&testing::key(1)).0,
            began: Instant::now(),
        }));
        let config = Config::new("127.0.0.1:0".parse().unwrap()).operator(operator.key);
        let service = serve(domain.clone(), config, None).unwrap();
        Self {
            address: service.address(),
            domain,
            folder,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the command, which has to end so.
    fn segue(&self, words: &[&str], code: i32) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
        command.args(words).current_dir(self.folder.path());
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().unwrap();
        let (out, err) = (
            String::from_utf8(stdout).unwrap(),
            String::from_utf8(stderr).unwrap(),
        );
        assert_eq!(status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }

    fn upgrade(&self, more: &[&str], version: &str, code: i32) -> (String, String) {
        let address = self.address.to_string();
        let words = [&["upgrade"], more, &[&address, version]].concat();
        self.segue(&words, code)
    }

    fn json(&self, words: &[&str]) -> Value {
        let address = self.address.to_string();
        let (out, _) = self.segue(&[words, &["--json", &address]].concat(), 0);
        serde_json::from_str(&out).unwrap()
    }

    fn runs(&self) -> (u64, String) {
        let state = self.domain.0.state();
        (state.generation, state.ident.version.to_string())
    }
}

const KEY: [&str; 2] = ["--key", "operator"];

/// A web server that answers with this status only.
fn web(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let text =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(text.as_bytes());
        }
    });
    format!("http://{address}/")
}

#[test]
fn a_healthy_image_is_confirmed() {
    let test = Test::new();
    let good = web("204 No Content");
    let (out, _) = test.upgrade(&[&KEY[..], &["--healthy", &good]].concat(), "1.1.0", 0);
    for word in [
        "test 1.1.0 runs",
        "generation 2",
        "blackout 312 µs",
        "2 regions",
        "confirmed",
    ] {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert_eq!(test.runs(), (2, "1.1.0".into()));
    assert!(!test.domain.has_way_back());
    // The same again.
    let (out, _) = test.upgrade(&KEY, "1.1.0", 0);
    assert!(out.contains("runs already"), "{out}");
    assert_eq!(test.runs().0, 2);
    let status = test.json(&["status"]);
    assert_eq!(status["generation"], 2);
    assert_eq!(status["boots_another"], true);
    let (_, err) = test.segue(&["status", &test.address.to_string()], 0);
    assert!(err.contains("warning: the domain was booted with another image"));
}

#[test]
fn one_that_is_not_healthy_is_taken_back() {
    let test = Test::new();
    let bad = web("503 Service Unavailable");
    let more = [&KEY[..], &["--healthy", &bad, "--healthy-timeout", "1s"]].concat();
    let (_, err) = test.upgrade(&more, "1.1.0", 5);
    assert!(err.contains("503") && err.contains("is back"), "{err}");
    assert_eq!(test.runs(), (3, "1.0.0".into()));
    // Nobody would be there to confirm in time.
    let more = [&more[..], &["--probation", "3s"]].concat();
    let (_, err) = test.upgrade(&more, "1.1.0", 1);
    assert!(err.contains("--probation"), "{err}");
    assert_eq!(test.runs().0, 3);
}

#[test]
fn one_that_gives_up_is_told_of() {
    let test = Test::new();
    test.domain.0.state.lock().unwrap().stays = Some(Stays::Resumed {
        why: "panic at=src/main.rs:3".into(),
        console: "one\ntwo\x1b[2J\n".into(),
    });
    let (_, err) = test.upgrade(&KEY, "1.1.0", 4);
    assert!(err.contains("panic at=src/main.rs:3") && err.contains("it printed: one"));
    assert!(!err.contains('\x1b'));
    test.domain.0.state.lock().unwrap().stays = Some(Stays::Refused {
        why: "the domain was asked to end".into(),
    });
    let more = [&KEY[..], &["--json"]].concat();
    let (out, err) = test.upgrade(&more, "1.1.0", 3);
    assert!(err.contains("nothing has changed"));
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["outcome"], "refused");
    assert_eq!(test.runs(), (1, "1.0.0".into()));
}

#[test]
fn who_may_not_changes_nothing() {
    let test = Test::new();
    let (_, err) = test.upgrade(&[], "1.1.0", 3);
    assert!(err.contains("--key FILE"), "{err}");
    let (_, err) = test.upgrade(&["--key", "stranger"], "1.1.0", 3);
    assert!(err.contains("is no operator's"), "{err}");
    let (_, err) = test.upgrade(&KEY, "0.9.0", 3);
    assert!(
        err.contains("older") && err.contains("allow-downgrade"),
        "{err}"
    );
    test.upgrade(&[&KEY[..], &["--no-confirm"]].concat(), "1.1.0", 0);
    let address = test.address.to_string();
    for command in ["rollback", "confirm"] {
        test.segue(&[command, "--key", "stranger", &address], 3);
        test.segue(&[command, &address], 3);
    }
    assert_eq!(test.runs(), (2, "1.1.0".into()));
    assert!(test.domain.has_way_back());
    let (out, _) = test.segue(&["rollback", "--key", "operator", &address], 0);
    assert!(out.contains("is back, as generation 3"), "{out}");
    assert_eq!(test.runs(), (3, "1.0.0".into()));
    let (_, err) = test.segue(&["rollback", "--key", "operator", &address], 3);
    assert!(err.contains("no image to go back to"), "{err}");
    let (out, _) = test.segue(&["confirm", "--key", "operator", &address], 0);
    assert!(out.contains("on no probation"), "{out}");
}

#[test]
fn what_is_wrong_here_is_found_here() {
    let test = Test::new();
    fs::write(test.path("no.bundle"), [1; 300]).unwrap();
    let (_, err) = test.upgrade(&KEY, "no.bundle", 1);
    assert!(err.contains("not a Segue bundle"), "{err}");
    test.upgrade(&["--key", "missing"], "1.1.0", 1);
    test.segue(&["upgrade", "a:b:c", "1.1.0"], 2);
    // Nobody is there.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let (_, err) = test.segue(&["status", &address], 6);
    assert!(err.contains("nobody answers"), "{err}");
    // Somebody else is.
    let web = web("200 OK");
    let address = web.trim_start_matches("http://").trim_end_matches('/');
    let (_, err) = test.segue(&["status", address], 1);
    assert!(err.contains("no upgrade service"), "{err}");
}
