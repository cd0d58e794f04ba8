//! Files: the tree of the image, and `/tmp`.

use crate::ensure;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};

/// An error with what was done.
fn at<T>(what: &str, result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e} ({:?})", e.kind()))
}

/// That it fails, and so.
fn fails<T>(what: &str, result: std::io::Result<T>, kind: ErrorKind) -> Result<(), String> {
    let said = result.map(drop).map_err(|e| e.kind());
    ensure(said == Err(kind), || format!("{what}: {said:?}"))
}

/// What came with the image can be read, and no more.
pub fn tree() -> Result<String, String> {
    let text = at("read", fs::read_to_string("/etc/motd"))?;
    ensure(text == "read only\n", || format!("{text:?}"))?;
    let meta = at("metadata", fs::metadata("/etc/motd"))?;
    ensure(meta.is_file() && meta.len() == 10, || format!("{meta:?}"))?;
    ensure(at("metadata", fs::metadata("/etc"))?.is_dir(), || {
        "/etc is no directory".into()
    })?;
    let names: Vec<_> = at("read_dir", fs::read_dir("/etc"))?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .collect();
    ensure(names == ["motd"], || format!("{names:?}"))?;
    let create = OpenOptions::new().write(true).open("/etc/motd").map(drop);
    ensure(create.is_err(), || "opened to write".into())?;
    ensure(fs::remove_file("/etc/motd").is_err(), || "removed".into())?;
    ensure(File::create("/etc/new").is_err(), || "created".into())?;
    fails("none", File::open("/etc/none"), ErrorKind::NotFound)?;
    Ok(String::new())
}

/// All that std can do with a file in `/tmp`, which is memory.
pub fn tmp() -> Result<String, String> {
    let path = "/tmp/stdtest";
    let free = segue::free_frames();
    // Of a round before that failed.
    let _ = fs::remove_dir_all(path);
    at("create_dir", fs::create_dir(path))?;
    fails("again", fs::create_dir(path), ErrorKind::AlreadyExists)?;
    let name = format!("{path}/a");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let mut file = at("create_new", options.open(&name))?;
    fails("twice", options.open(&name), ErrorKind::AlreadyExists)?;
    // Longer than a page, and no multiple of one.
    let content: Vec<u8> = (0..100_003u32).map(|i| (i * 7 % 251) as u8).collect();
    at("write", file.write_all(&content))?;
    at("flush", file.flush())?;
    let end = at("seek", file.seek(SeekFrom::End(-3)))?;
    ensure(end == 100_000, || format!("at {end}"))?;
    let mut last = Vec::new();
    at("read", file.read_to_end(&mut last))?;
    ensure(last == content[100_000..], || format!("{last:?}"))?;
    at("rewind", file.rewind())?;
    let mut all = Vec::new();
    at("read", file.read_to_end(&mut all))?;
    ensure(all == content, || "another content".into())?;
    drop(file);

    let mut log = at("append", OpenOptions::new().append(true).open(&name))?;
    at("append", writeln!(log, "one\ntwo"))?;
    drop(log);
    let meta = at("metadata", fs::metadata(&name))?;
    ensure(meta.len() == 100_011, || format!("{} bytes", meta.len()))?;
    at("truncate", File::create(&name).map(drop))?;
    at("write", fs::write(&name, "one\ntwo\nthree"))?;
    let lines: Vec<_> = BufReader::new(at("open", File::open(&name))?)
        .lines()
        .map_while(Result::ok)
        .collect();
    ensure(lines == ["one", "two", "three"], || format!("{lines:?}"))?;

    let full = fs::remove_dir(path);
    ensure(full.is_err(), || "removed a full directory".into())?;
    at("remove", fs::remove_file(&name))?;
    fails("gone", File::open(&name), ErrorKind::NotFound)?;
    at("remove_dir", fs::remove_dir(path))?;
    fails("gone", fs::metadata(path), ErrorKind::NotFound)?;
    // The heap keeps some of what it took.
    let kept = free.saturating_sub(segue::free_frames());
    Ok(format!("kept_frames={kept}"))
}
