//! cpio archives, and the files that come of them.
//!
//! The input is an archive, or a list of entries that one is made of and then damaged.

use crate::{Input, Target};
use segue_kernel::abi::fd::Object;
use segue_kernel::fs::Files;
use segue_kernel::fs::archive;
use segue_kernel::fs::tmp::Tmp;
use segue_kernel::fs::tree::Tree;

pub const TARGET: Target = Target {
    name: "cpio",
    what: "cpio archives and the tree of files",
    longest: 4096,
    memory: 1 << 20,
    seeds,
    run,
};

/// As std's target has it.
const O_DIRECTORY: i32 = 0o200_000;

fn run(input: &[u8]) {
    let mut input = Input(input);
    let made = match input.u8() % 2 {
        0 => input.rest().to_vec(),
        _ => made(input),
    };
    let archive = Box::into_raw(made.into_boxed_slice());
    // SAFETY: just made, and given back only below. A tree wants its archive for ever; this one
    // is gone when `look` returns, and nothing else keeps a part of it.
    look(unsafe { &*archive });
    // SAFETY: from `into_raw` above; nobody has a part of it any more.
    drop(unsafe { Box::from_raw(archive) });
}

/// Entries: mode, name, content; then bytes to be changed.
fn made(mut input: Input<'_>) -> Vec<u8> {
    let mut archive = Vec::new();
    let count = input.u8() % 16;
    for n in 0..count {
        let mode = [0o100_644, 0o040_755, 0o120_777, 0o020_600][usize::from(input.u8() % 4)];
        let (name, content) = (input.piece(), input.piece());
        entry(&mut archive, u32::from(n), mode, name, content);
    }
    entry(&mut archive, 0, 0, b"TRAILER!!!", b"");
    while input.more() {
        let (at, value) = (input.u16(), input.u8());
        let at = usize::from(at) % archive.len();
        archive[at] = value;
    }
    archive
}

fn entry(archive: &mut Vec<u8>, ino: u32, mode: u32, name: &[u8], content: &[u8]) {
    let fields = [
        ino,
        mode,
        0,
        0,
        1,
        1_700_000_000,
        content.len() as u32,
        0,
        0,
        0,
        0,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name);
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn look(bytes: &'static [u8]) {
    let _ = archive::is_one(bytes);
    let mut tree = Tree::new();
    let taken = archive::add(&mut tree, bytes);
    if let Err(error) = taken {
        assert!(!error.to_string().is_empty());
    }
    // A second time over the same changes nothing, or fails the same way.
    assert_eq!(archive::add(&mut tree, bytes), taken);
    let files = Files::new(tree, Tmp::new(64 << 10));
    let mut names = Vec::new();
    walk(&files, b"/", bytes, &mut names, 0);
    if taken.is_err() {
        assert_eq!(names, [b"/tmp".to_vec()], "an error leaves nothing");
    }
    for name in &names {
        // Nothing of it can be changed.
        if name != b"/tmp" {
            assert!(files.unlink(name).is_err());
            assert!(files.rmdir(name).is_err());
            assert!(files.mkdir(name, 0o755).is_err());
        }
        let _ = files.stat(name);
        let _ = files.stat(&[name, &b"/x"[..]].concat());
    }
}

/// What is under a folder, as std finds it.
fn walk(files: &Files, path: &[u8], archive: &[u8], names: &mut Vec<Vec<u8>>, depth: usize) {
    // Links are not followed, so it is no deeper than a name has slashes.
    assert!(depth <= archive.len() + 1);
    let Ok(folder) = files.open(path, O_DIRECTORY, 0) else {
        return;
    };
    for name in list(&*folder) {
        let child = match path {
            b"/" => [b"/", &name[..]].concat(),
            path => [path, b"/", &name].concat(),
        };
        if child.len() > 4000 {
            continue;
        }
        assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/'));
        assert!(!names.contains(&child), "a name comes once");
        let stat = files.lstat(&child).expect("what is listed is there");
        names.push(child.clone());
        if let Some(content) = files.content(&child) {
            let range = archive.as_ptr_range();
            let within = content.is_empty()
                || range.contains(&content.as_ptr()) && content.len() <= archive.len();
            assert!(within, "content lies in the archive");
            if stat.st_mode & 0o170_000 == 0o100_000 {
                assert_eq!(stat.st_size, content.len() as i64);
                let file = files.open(&child, 0, 0).expect("a file opens");
                let mut buf = vec![0; content.len() + 1];
                assert_eq!(file.read(&mut buf), Ok(content.len()));
                assert_eq!(&buf[..content.len()], content);
            }
        }
        if stat.st_mode & 0o170_000 == 0o040_000 {
            walk(files, &child, archive, names, depth + 1);
        }
    }
}

/// The names in `getdents64`'s records.
fn list(folder: &dyn Object) -> Vec<Vec<u8>> {
    let mut buf = vec![0; 64 << 10];
    let len = folder.read_dir(&mut buf).expect("a folder can be read");
    let mut rest = &buf[..len];
    let mut names = Vec::new();
    while let Some(record) = rest.first_chunk::<19>() {
        let len = usize::from(u16::from_ne_bytes([record[16], record[17]]));
        let name = rest[19..len].split(|b| *b == 0).next().unwrap_or_default();
        names.push(name.to_vec());
        rest = &rest[len..];
    }
    names
}

fn seeds() -> Vec<Vec<u8>> {
    let mut archive = Vec::new();
    entry(&mut archive, 1, 0o040_755, b".", b"");
    entry(&mut archive, 2, 0o040_755, b"www", b"");
    entry(
        &mut archive,
        3,
        0o100_644,
        b"www/index.html",
        b"<p>hello</p>",
    );
    entry(
        &mut archive,
        4,
        0o120_777,
        b"www/home",
        b"../www/index.html",
    );
    entry(&mut archive, 5, 0o120_777, b"loop", b"loop");
    entry(&mut archive, 6, 0o100_644, b"a/b/c/d", b"");
    entry(&mut archive, 0, 0, b"TRAILER!!!", b"");
    let mut script = vec![1, 4];
    for (kind, name, content) in [
        (1u8, &b"d"[..], &b""[..]),
        (0, b"d/f", b"content"),
        (2, b"d/l", b"/d/f"),
        (0, b"d", b"now a file"),
    ] {
        script.push(kind);
        for piece in [name, content] {
            script.push(piece.len() as u8);
            script.extend(piece);
        }
    }
    let mut outside = Vec::new();
    entry(&mut outside, 1, 0o100_644, b"www/../../etc/passwd", b"root");
    entry(&mut outside, 0, 0, b"TRAILER!!!", b"");
    let damaged = [&script[..], &[60, 0, b'f', 130, 0, b'9']].concat();
    vec![
        [&[0], &archive[..]].concat(),
        [&[0], &outside[..]].concat(),
        script,
        damaged,
    ]
}
