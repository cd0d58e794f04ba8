//! `/tmp` against Linux's own files, step by step; the tree against the archive it came from.

use super::tmp::{MOST, Tmp};
use super::tree::{Meta, Tree};
use super::{Files, archive};
use crate::abi::errno::Errno;
use crate::abi::fd::Object;
use hermit_abi::{
    DT_DIR, DT_LNK, DT_REG, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC,
    O_WRONLY, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SEEK_CUR, SEEK_END, SEEK_SET,
};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{self as linux, Mode, OFlags};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

const PLENTY: u64 = 1 << 30;

fn empty() -> Files {
    Files::new(Tree::new(), Tmp::new(PLENTY))
}

/// The entries that a folder's records name: name and `DT_*`.
fn list(files: &Files, path: &[u8]) -> Result<Vec<(Vec<u8>, u8)>, Errno> {
    let folder = files.open(path, O_RDONLY | O_DIRECTORY, 0)?;
    let mut buf = vec![0; 16];
    let len = loop {
        // As std does it.
        match folder.read_dir(&mut buf) {
            Err(Errno::EINVAL) => buf.resize(buf.len() * 2, 0),
            other => break other?,
        }
    };
    assert_eq!(folder.read_dir(&mut buf), Ok(0));
    let mut rest = &buf[..len];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let record_len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        assert_eq!(record_len % 8, 0);
        let name = rest[19..record_len].split(|b| *b == 0).next().unwrap();
        assert_ne!(u64::from_ne_bytes(rest[..8].try_into().unwrap()), 0);
        entries.push((name.to_vec(), rest[18]));
        rest = &rest[record_len..];
    }
    Ok(entries)
}

#[derive(Clone, Debug)]
enum Op {
    Open { path: String, flags: i32 },
    Close(usize),
    Read(usize, usize),
    Write(usize, usize),
    Seek(usize, i64, i32),
    Truncate(usize, u64),
    StatOpen(usize),
    Stat(String),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    List(String),
}

/// Paths of few names, so that they meet; none leads above the folder they start in.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => "[ab]", 1 => Just(".".to_owned()), 1 => Just("..".to_owned())];
    (vec(name, 1..4), prop::bool::weighted(0.15)).prop_map(|(names, slash)| {
        let mut depth = 0;
        let mut kept = Vec::new();
        for name in names {
            depth += match &name[..] {
                "." => 0,
                ".." => -1,
                _ => 1,
            };
            if depth < 0 {
                break;
            }
            kept.push(name);
        }
        if kept.is_empty() {
            kept.push(".".to_owned());
        }
        kept.join("/") + if slash { "/" } else { "" }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let flags = (
        prop::sample::select(&[O_RDONLY, O_WRONLY, O_RDWR][..]),
        prop::sample::subsequence(&[O_CREAT, O_CREAT | O_EXCL, O_TRUNC, O_APPEND][..], 0..=2),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(access, more, folder)| {
            let more = more.into_iter().fold(0, |all, flag| all | flag);
            access | more | if folder { O_DIRECTORY } else { 0 }
        });
    let slot = 0..4_usize;
    let len = prop_oneof![0..40_usize, Just(4096), 4000..9000_usize];
    prop_oneof![
        6 => (path(), flags).prop_map(|(path, flags)| Op::Open { path, flags }),
        1 => slot.clone().prop_map(Op::Close),
        3 => (slot.clone(), len.clone()).prop_map(|(slot, len)| Op::Read(slot, len)),
        4 => (slot.clone(), len).prop_map(|(slot, len)| Op::Write(slot, len)),
        2 => (slot.clone(), -9000..9000_i64, 0..3).prop_map(|(s, o, w)| Op::Seek(s, o, w)),
        1 => (slot.clone(), 0..9000_u64).prop_map(|(slot, len)| Op::Truncate(slot, len)),
        1 => slot.prop_map(Op::StatOpen),
        2 => path().prop_map(Op::Stat),
        2 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::Mkdir),
        2 => path().prop_map(Op::Rmdir),
        2 => path().prop_map(Op::List),
    ]
}

/// What an operation came to.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Done,
    Number(u64),
    Bytes(Vec<u8>),
    Entries(Vec<(Vec<u8>, u8)>),
    /// Kind; size if it is a file.
    Stat(u32, Option<u64>),
    Error(i32),
}

impl Outcome {
    fn ours<T>(result: Result<T, Errno>, make: impl FnOnce(T) -> Self) -> Self {
        result.map_or_else(|error| Self::Error(error.0), make)
    }

    fn linux<T>(result: rustix::io::Result<T>, make: impl FnOnce(T) -> Self) -> Self {
        result.map_or_else(|error| Self::Error(error.raw_os_error()), make)
    }

    fn stat(mode: u32, size: u64) -> Self {
        let kind = mode & S_IFMT;
        Self::Stat(kind, (kind == S_IFREG).then_some(size))
    }
}

/// Bytes that differ from write to write.
fn bytes(step: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (step * 37 + i + 1) as u8).collect()
}

struct Ours {
    files: Files,
    open: BTreeMap<usize, Arc<dyn Object>>,
}

impl Ours {
    fn run(&mut self, step: usize, op: &Op) -> Outcome {
        let at = |path: &str| format!("/tmp/{path}").into_bytes();
        let with = |slot: &usize, run: &dyn Fn(&dyn Object) -> Outcome| {
            self.open
                .get(slot)
                .map_or(Outcome::Done, |object| run(&**object))
        };
        match op {
            Op::Open { path, flags } => {
                let result = self.files.open(&at(path), *flags, 0o777);
                Outcome::ours(result, |object| {
                    self.open.insert(step % 4, object);
                    Outcome::Done
                })
            }
            Op::Close(slot) => {
                self.open.remove(slot);
                Outcome::Done
            }
            Op::Read(slot, len) => with(slot, &|object| {
                let mut buf = vec![0; *len];
                Outcome::ours(object.read(&mut buf), |n| Outcome::Bytes(buf[..n].to_vec()))
            }),
            Op::Write(slot, len) => with(slot, &|object| {
                let result = object.write(&bytes(step, *len));
                Outcome::ours(result, |n| Outcome::Number(n as u64))
            }),
            Op::Seek(slot, offset, whence) => with(slot, &|object| {
                Outcome::ours(object.seek(*offset, *whence), Outcome::Number)
            }),
            Op::Truncate(slot, len) => with(slot, &|object| {
                Outcome::ours(object.truncate(*len), |()| Outcome::Done)
            }),
            Op::StatOpen(slot) => with(slot, &|object| {
                Outcome::ours(object.stat(), |s| {
                    Outcome::stat(s.st_mode, s.st_size as u64)
                })
            }),
            Op::Stat(path) => Outcome::ours(self.files.stat(&at(path)), |s| {
                Outcome::stat(s.st_mode, s.st_size as u64)
            }),
            Op::Unlink(path) => Outcome::ours(self.files.unlink(&at(path)), |()| Outcome::Done),
            Op::Mkdir(path) => {
                Outcome::ours(self.files.mkdir(&at(path), 0o777), |()| Outcome::Done)
            }
            Op::Rmdir(path) => Outcome::ours(self.files.rmdir(&at(path)), |()| Outcome::Done),
            Op::List(path) => Outcome::ours(list(&self.files, &at(path)), Outcome::Entries),
        }
    }
}

struct Linux {
    root: PathBuf,
    open: BTreeMap<usize, OwnedFd>,
}

impl Linux {
    fn run(&mut self, step: usize, op: &Op) -> Outcome {
        // Not through `join`, which would tidy the path up.
        let at = |path: &str| format!("{}/{path}", self.root.display());
        let all = Mode::from_raw_mode(0o777);
        let with = |slot: &usize, run: &dyn Fn(&OwnedFd) -> Outcome| {
            self.open.get(slot).map_or(Outcome::Done, run)
        };
        match op {
            Op::Open { path, flags } => {
                let flags = OFlags::from_bits_retain(*flags as u32);
                Outcome::linux(linux::open(at(path), flags, all), |fd| {
                    self.open.insert(step % 4, fd);
                    Outcome::Done
                })
            }
            Op::Close(slot) => {
                self.open.remove(slot);
                Outcome::Done
            }
            Op::Read(slot, len) => with(slot, &|fd| {
                let mut buf = vec![0; *len];
                let result = rustix::io::read(fd, &mut buf[..]);
                Outcome::linux(result, |n| Outcome::Bytes(buf[..n].to_vec()))
            }),
            Op::Write(slot, len) => with(slot, &|fd| {
                let result = rustix::io::write(fd, &bytes(step, *len));
                Outcome::linux(result, |n| Outcome::Number(n as u64))
            }),
            Op::Seek(slot, offset, whence) => with(slot, &|fd| {
                use rustix::fs::SeekFrom;
                let from = match *whence {
                    SEEK_SET if *offset < 0 => return Outcome::Error(Errno::EINVAL.0),
                    SEEK_SET => SeekFrom::Start(*offset as u64),
                    SEEK_CUR => SeekFrom::Current(*offset),
                    SEEK_END => SeekFrom::End(*offset),
                    _ => unreachable!(),
                };
                Outcome::linux(linux::seek(fd, from), Outcome::Number)
            }),
            Op::Truncate(slot, len) => with(slot, &|fd| {
                Outcome::linux(linux::ftruncate(fd, *len), |()| Outcome::Done)
            }),
            Op::StatOpen(slot) => with(slot, &|fd| {
                Outcome::linux(linux::fstat(fd), |s| {
                    Outcome::stat(s.st_mode, s.st_size as u64)
                })
            }),
            Op::Stat(path) => Outcome::linux(linux::stat(at(path)), |s| {
                Outcome::stat(s.st_mode, s.st_size as u64)
            }),
            Op::Unlink(path) => Outcome::linux(linux::unlink(at(path)), |()| Outcome::Done),
            Op::Mkdir(path) => Outcome::linux(linux::mkdir(at(path), all), |()| Outcome::Done),
            Op::Rmdir(path) => Outcome::linux(linux::rmdir(at(path)), |()| Outcome::Done),
            Op::List(path) => match std::fs::read_dir(at(path)) {
                Err(error) => Outcome::Error(error.raw_os_error().unwrap()),
                Ok(entries) => {
                    let mut entries: Vec<(Vec<u8>, u8)> = entries
                        .map(|entry| {
                            let entry = entry.unwrap();
                            let folder = entry.file_type().unwrap().is_dir();
                            let name = entry.file_name().into_encoded_bytes();
                            (name, if folder { DT_DIR } else { DT_REG })
                        })
                        .collect();
                    entries.sort();
                    Outcome::Entries(entries)
                }
            },
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is done, `/tmp` answers as Linux does, and in the end has what Linux has; and all
    /// it took it gives back.
    #[test]
    fn tmp_is_as_linux(ops in vec(op(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let mut ours = Ours { files: empty(), open: BTreeMap::new() };
        let mut linux = Linux { root: folder.path().to_owned(), open: BTreeMap::new() };
        for (step, op) in ops.iter().enumerate() {
            let outcome = ours.run(step, op);
            // Linux lets one move in a folder, to where its entries have no order: nobody needs it.
            if outcome != Outcome::Error(Errno::ESPIPE.0) {
                prop_assert_eq!(outcome, linux.run(step, op), "step {}: {:?}", step, op);
            }
        }
        ours.open.clear();
        remove_all(&ours.files, "/tmp");
        prop_assert_eq!(ours.files.tmp.used(), Tmp::new(PLENTY).used());
    }

    /// What is packed is found again: content, kind, permissions, time.
    #[test]
    fn a_tree_is_as_its_archive(
        entries in prop::collection::btree_map(
            vec("[a-c]{1,2}", 1..4), (vec(any::<u8>(), 0..50), 0..0o1000_u32, any::<u32>()), 0..12,
        ),
    ) {
        let mut archive = Archive::default();
        let mut expected = BTreeMap::new();
        for (names, (content, permissions, time)) in &entries {
            let path = names.join("/");
            // A file that another one's folder is called by.
            if entries.keys().any(|other| other.len() > names.len() && other.starts_with(names)) {
                continue;
            }
            archive.add(&path, S_IFREG | permissions, *time, content);
            expected.insert(path, (content.clone(), *permissions, *time));
        }
        let mut tree = Tree::new();
        archive::add(&mut tree, archive.finish()).unwrap();
        let files = Files::new(tree, Tmp::new(PLENTY));
        for (path, (content, permissions, time)) in &expected {
            let path = format!("/{path}").into_bytes();
            prop_assert_eq!(files.content(&path), Some(&content[..]));
            let stat = files.stat(&path).unwrap();
            prop_assert_eq!(stat.st_mode, S_IFREG | (permissions & !0o222));
            prop_assert_eq!(stat.st_mtim.tv_sec, i64::from(*time));
            prop_assert_eq!(stat.st_size, content.len() as i64);
            let file = files.open(&path, O_RDONLY, 0).unwrap();
            let mut buf = [0; 7];
            let mut read = Vec::new();
            while let n @ 1.. = file.read(&mut buf).unwrap() {
                read.extend_from_slice(&buf[..n]);
            }
            prop_assert_eq!(&read, content);
        }
        let (found, _) = walk(&files, "");
        let names: Vec<&String> = expected.keys().collect();
        prop_assert_eq!(found.iter().collect::<Vec<_>>(), names);
    }

    /// A damaged archive is refused or read, and its tree can be walked; a cut one is refused.
    #[test]
    fn a_damaged_archive_does_no_harm(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample().to_vec();
        let cut = cut.index(bytes.len() - 4);
        let mut tree = Tree::new();
        // Behind the trailer's name is only padding.
        if cut < bytes.len() - 512 {
            prop_assert!(archive::add(&mut tree, leaked(&bytes[..cut])).is_err());
        }
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = archive::add(&mut tree, leaked(&bytes));
        walk(&Files::new(tree, Tmp::new(PLENTY)), "");
    }

    /// So do any bytes.
    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        let bytes = if magic { [b"070701", &bytes[..]].concat() } else { bytes };
        let mut tree = Tree::new();
        let _ = archive::add(&mut tree, leaked(&bytes));
    }
}

fn leaked(bytes: &[u8]) -> &'static [u8] {
    bytes.to_vec().leak()
}

fn remove_all(files: &Files, folder: &str) {
    for (name, kind) in list(files, folder.as_bytes()).unwrap() {
        let path = format!("{folder}/{}", String::from_utf8(name).unwrap());
        if kind == DT_DIR {
            remove_all(files, &path);
            files.rmdir(path.as_bytes()).unwrap();
        } else {
            files.unlink(path.as_bytes()).unwrap();
        }
    }
}

/// All files below a folder but those of `/tmp`, sorted; and links.
fn walk(files: &Files, folder: &str) -> (Vec<String>, Vec<String>) {
    let (mut found, mut links) = (Vec::new(), Vec::new());
    let path = format!("/{folder}");
    for (name, kind) in list(files, path.as_bytes()).unwrap() {
        let Ok(name) = String::from_utf8(name) else {
            continue;
        };
        let path = format!("{folder}/{name}")
            .trim_start_matches('/')
            .to_owned();
        let stat = files.lstat(format!("/{path}").as_bytes()).unwrap();
        match kind {
            DT_DIR => {
                assert_eq!(stat.st_mode & S_IFMT, S_IFDIR);
                let (more, more_links) = walk(files, &path);
                found.extend(more);
                links.extend(more_links);
            }
            DT_LNK => {
                assert_eq!(stat.st_mode & S_IFMT, S_IFLNK);
                links.push(path);
            }
            _ => {
                assert_eq!(stat.st_mode & S_IFMT, S_IFREG);
                found.push(path);
            }
        }
    }
    found.sort();
    (found, links)
}

#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, time: u32, content: &[u8]) {
        let entry = cpio::newc::Builder::new(name).mode(mode).mtime(time);
        let mut writer = entry.write(&mut self.0, content.len() as u32);
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    }

    fn finish(mut self) -> &'static [u8] {
        cpio::newc::trailer(&mut self.0).unwrap();
        // As GNU cpio does.
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self.0.leak()
    }
}

fn sample() -> &'static [u8] {
    let mut archive = Archive::default();
    archive.add(".", S_IFDIR | 0o755, 1, b"");
    archive.add("./www", S_IFDIR | 0o755, 2, b"");
    archive.add("www/index.html", S_IFREG | 0o644, 3, b"<p>hello");
    archive.add("/etc/deep/er/file", S_IFREG | 0o600, 4, b"deep");
    archive.add("www/empty", S_IFREG | 0o644, 5, b"");
    archive.add("home", S_IFLNK | 0o777, 6, b"www");
    archive.add("etc/up", S_IFLNK | 0o777, 6, b"../home/index.html");
    archive.add("round", S_IFLNK | 0o777, 6, b"/round");
    archive.add("scratch", S_IFLNK | 0o777, 6, b"/tmp/x");
    archive.add("dev/null", 0o020_666, 6, b"");
    archive.finish()
}

fn sample_files() -> Files {
    let mut tree = Tree::new();
    archive::add(&mut tree, sample()).unwrap();
    Files::new(tree, Tmp::new(PLENTY))
}

#[test]
fn the_tree_can_be_read_but_not_changed() {
    let files = sample_files();
    let error = |result: Result<Arc<dyn Object>, Errno>| result.err();
    let open = |path: &str, flags| files.open(path.as_bytes(), flags, 0o644);
    assert_eq!(error(open("/www/index.html", O_RDONLY)), None);
    assert_eq!(error(open("www/index.html", O_RDONLY | O_CREAT)), None);
    for flags in [O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC, O_WRONLY | O_APPEND] {
        assert_eq!(error(open("/www/index.html", flags)), Some(Errno::EROFS));
    }
    let exclusive = O_WRONLY | O_CREAT | O_EXCL;
    assert_eq!(
        error(open("/www/index.html", exclusive)),
        Some(Errno::EEXIST)
    );
    assert_eq!(
        error(open("/www/new", O_WRONLY | O_CREAT)),
        Some(Errno::EROFS)
    );
    assert_eq!(error(open("/www/new", O_RDONLY)), Some(Errno::ENOENT));
    assert_eq!(error(open("/www", O_WRONLY)), Some(Errno::EISDIR));
    assert_eq!(
        error(open("/www/index.html", O_DIRECTORY)),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(
        error(open("/www/index.html/x", O_RDONLY)),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(
        error(open("/www/index.html/", O_RDONLY)),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(error(open("", O_RDONLY)), Some(Errno::ENOENT));
    let long = "x".repeat(256);
    assert_eq!(error(open(&long, O_RDONLY)), Some(Errno::ENAMETOOLONG));
    let long = "x/".repeat(2048);
    assert_eq!(error(open(&long, O_RDONLY)), Some(Errno::ENAMETOOLONG));
    assert_eq!(files.unlink(b"/www/index.html"), Err(Errno::EROFS));
    assert_eq!(files.unlink(b"/www/none"), Err(Errno::ENOENT));
    assert_eq!(files.unlink(b"/www"), Err(Errno::EISDIR));
    assert_eq!(files.rmdir(b"/www"), Err(Errno::EROFS));
    assert_eq!(files.mkdir(b"/www", 0), Err(Errno::EEXIST));
    assert_eq!(files.mkdir(b"/new", 0), Err(Errno::EROFS));
    assert_eq!(files.rmdir(b"/tmp"), Err(Errno::EBUSY));
    assert_eq!(files.unlink(b"/tmp"), Err(Errno::EISDIR));
    assert_eq!(files.rmdir(b"/"), Err(Errno::EBUSY));
    let file = open("/www/index.html", O_RDONLY).unwrap();
    assert_eq!(file.write(b"x"), Err(Errno::EBADF));
    assert_eq!(file.seek(-3, SEEK_END), Ok(5));
    let mut buf = [0; 9];
    assert_eq!(file.read(&mut buf), Ok(3));
    assert_eq!(&buf[..3], b"llo");
    assert_eq!(file.seek(-1, SEEK_SET), Err(Errno::EINVAL));
    assert_eq!(file.seek(i64::MAX, SEEK_CUR), Err(Errno::EOVERFLOW));
    assert_eq!(file.seek(100, SEEK_SET), Ok(100));
    assert_eq!(file.read(&mut buf), Ok(0));
}

#[test]
fn folders_are_listed_with_what_is_mounted() {
    let files = sample_files();
    let names = |path: &str| -> Vec<String> {
        let entries = list(&files, path.as_bytes()).unwrap();
        entries
            .into_iter()
            .map(|(n, _)| String::from_utf8(n).unwrap())
            .collect()
    };
    assert_eq!(
        names("/"),
        ["etc", "home", "round", "scratch", "tmp", "www"]
    );
    assert_eq!(names("/home"), ["empty", "index.html"]);
    assert_eq!(names("/tmp").len(), 0);
    let (found, links) = walk(&files, "");
    assert_eq!(found, ["etc/deep/er/file", "www/empty", "www/index.html"]);
    assert_eq!(links, ["etc/up", "home", "round", "scratch"]);
    // No two things have the same number.
    let number = |path: &str| {
        let stat = files.stat(path.as_bytes()).unwrap();
        (stat.st_dev, stat.st_ino)
    };
    assert_ne!(number("/"), number("/tmp"));
    assert_eq!(number("/tmp/.."), number("/"));
}

#[test]
fn links_are_followed_as_far_as_they_lead() {
    let files = sample_files();
    assert_eq!(files.content(b"/home/index.html"), Some(&b"<p>hello"[..]));
    assert_eq!(files.content(b"/etc/up"), Some(&b"<p>hello"[..]));
    assert_eq!(files.lstat(b"/etc/up").unwrap().st_mode & S_IFMT, S_IFLNK);
    assert_eq!(files.stat(b"/etc/up").unwrap().st_size, 8);
    assert_eq!(files.lstat(b"/home/").unwrap().st_mode & S_IFMT, S_IFDIR);
    assert_eq!(files.stat(b"/round").err(), Some(Errno::ELOOP));
    assert_eq!(files.stat(b"/scratch").err(), Some(Errno::ENOENT));
    files
        .open(b"/scratch", O_WRONLY | O_CREAT, 0o644)
        .unwrap()
        .write(b"12")
        .unwrap();
    assert_eq!(files.stat(b"/tmp/x").unwrap().st_size, 2);
    let exclusive = O_WRONLY | O_CREAT | O_EXCL;
    assert_eq!(
        files.open(b"/scratch", exclusive, 0).err(),
        Some(Errno::EEXIST)
    );
    assert_eq!(files.unlink(b"/scratch"), Err(Errno::EROFS));
}

#[test]
fn a_later_archive_lies_over_an_earlier_one() {
    let mut tree = Tree::new();
    archive::add(&mut tree, sample()).unwrap();
    let mut over = Archive::default();
    over.add("www/index.html", S_IFREG | 0o644, 9, b"new");
    over.add("etc", S_IFREG | 0o644, 9, b"no folder any more");
    over.add("tmp/lost", S_IFREG | 0o644, 9, b"under the mount");
    archive::add(&mut tree, over.finish()).unwrap();
    let files = Files::new(tree, Tmp::new(PLENTY));
    assert_eq!(files.content(b"/www/index.html"), Some(&b"new"[..]));
    assert_eq!(files.content(b"/www/empty"), Some(&b""[..]));
    assert_eq!(files.stat(b"/etc/up").err(), Some(Errno::ENOTDIR));
    assert_eq!(files.stat(b"/tmp/lost").err(), Some(Errno::ENOENT));
    let mut bad = Archive::default();
    bad.add("ok", S_IFREG, 0, b"");
    bad.add("../out", S_IFREG, 0, b"");
    let mut tree = Tree::new();
    assert!(archive::add(&mut tree, bad.finish()).is_err());
    assert_eq!(tree.child(Tree::ROOT, b"ok"), None);
}

#[test]
fn tmp_is_bounded_and_gives_back() {
    let limit = 100 * 4096;
    let files = Files::new(Tree::new(), Tmp::new(limit));
    let before = files.tmp.used();
    let file = files.open(b"/tmp/a", O_RDWR | O_CREAT, 0o644).unwrap();
    let mut written = 0;
    let error = loop {
        match file.write(&[7; 10_000]) {
            Ok(n) => written += n as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Errno::ENOSPC);
    assert_eq!(written, 99 * 4096);
    assert_eq!(files.stat(b"/tmp/a").unwrap().st_size as u64, written);
    // Names take room too, so a second file has little.
    files.mkdir(b"/tmp/d", 0o755).unwrap();
    let mut count = 0;
    let error = loop {
        match files.mkdir(format!("/tmp/d/{count}").as_bytes(), 0o755) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, count < 10), (Errno::ENOSPC, true));
    // Open, it stays though its name is gone; then all is given back.
    files.unlink(b"/tmp/a").unwrap();
    assert_eq!(file.seek(0, SEEK_SET), Ok(0));
    let mut buf = [0; 3];
    assert_eq!(file.read(&mut buf), Ok(3));
    assert_eq!(buf, [7; 3]);
    drop(file);
    remove_all(&files, "/tmp");
    assert_eq!(files.tmp.used(), before);
    // A hole costs nothing, a position beyond the bound is refused.
    let file = files.open(b"/tmp/b", O_RDWR | O_CREAT, 0o644).unwrap();
    file.seek(limit as i64 - 1, SEEK_SET).unwrap();
    assert_eq!(file.write(b"xy"), Ok(1));
    assert_eq!(file.write(b"y"), Err(Errno::EFBIG));
    assert_eq!(files.tmp.used(), before + 512 + 4096);
    assert_eq!(file.truncate(limit + 1), Err(Errno::EFBIG));
}

#[test]
fn writes_and_reads_are_whole() {
    let files = empty();
    let writes = 200;
    std::thread::scope(|scope| {
        for writer in 1..=3_u8 {
            let files = &files;
            scope.spawn(move || {
                let file = files
                    .open(b"/tmp/log", O_WRONLY | O_CREAT | O_APPEND, 0o644)
                    .unwrap();
                for _ in 0..writes {
                    assert_eq!(file.write(&[writer; 5000]), Ok(5000));
                }
            });
        }
    });
    let file = files.open(b"/tmp/log", O_RDONLY, 0).unwrap();
    let mut counts = [0; 4];
    let mut buf = [0; 5000];
    while file.read(&mut buf).unwrap() > 0 {
        assert!(buf.iter().all(|b| *b == buf[0]), "a write was torn");
        counts[usize::from(buf[0])] += 1;
    }
    assert_eq!(counts, [0, writes, writes, writes]);
    // Long ones are cut, not refused.
    let file = files.open(b"/tmp/long", O_RDWR | O_CREAT, 0o644).unwrap();
    assert_eq!(file.write(&vec![1; MOST + 1]), Ok(MOST));
}

#[test]
fn nothing_is_made_in_a_folder_that_is_gone() {
    let files = empty();
    files.mkdir(b"/tmp/d", 0o755).unwrap();
    let folder = match files.tmp.root().child(b"d") {
        Some(super::tmp::Entry::Folder(folder)) => folder,
        other => panic!("{other:?}"),
    };
    files.rmdir(b"/tmp/d").unwrap();
    let made = folder.create_file(&files.tmp, b"f", 0o644, false);
    assert_eq!(made.err(), Some(Errno::ENOENT));
    let made = folder.create_folder(&files.tmp, b"f", 0o755);
    assert_eq!(made, Err(Errno::ENOENT));
}

#[test]
fn times_and_permissions_are_told() {
    let files = empty();
    files.open(b"/tmp/f", O_WRONLY | O_CREAT, 0o640).unwrap();
    let stat = files.stat(b"/tmp/f").unwrap();
    assert_eq!(stat.st_mode, S_IFREG | 0o640);
    let here = tempfile::NamedTempFile::new().unwrap();
    let now = here.as_file().metadata().unwrap().mtime();
    assert!((stat.st_mtim.tv_sec - now).abs() <= 2);
    let mut tree = Tree::new();
    tree.set_file(
        &[b"f"],
        Meta {
            permissions: 0o755,
            modified: 7,
        },
        b"",
    );
    let files = Files::new(tree, Tmp::new(PLENTY));
    assert_eq!(files.stat(b"f").unwrap().st_mode, S_IFREG | 0o555);
}
