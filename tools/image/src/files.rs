//! An app's files: a folder packed into a cpio archive, which is linked into the image.
//!
//! The same folder gives the same bytes wherever and whenever it is packed: entries are sorted, have
//! one time and one owner, and permissions that say only whether it is a folder.

use std::env;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, trailer};

use crate::{Error, write};

/// Folders, as `st_mode` has them.
const FOLDER: u32 = 0o040_755;
/// Files.
const FILE: u32 = 0o100_644;
/// The linker script knows archives by it.
pub(crate) const EXTENSION: &str = ".files.cpio";

/// Why files were not packed.
#[derive(Debug)]
#[non_exhaustive]
pub enum FilesError {
    /// A file or folder can't be read or written.
    Io(Error),
    /// Something is neither a file nor a folder.
    Kind(PathBuf),
    /// A name is not UTF-8, or is longer than 255 bytes.
    Name(PathBuf),
    /// A file has 4 GiB or more.
    Size(PathBuf),
    /// `SOURCE_DATE_EPOCH` is no time.
    Time(String),
}

impl fmt::Display for FilesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Kind(path) => write!(
                f,
                "{}: only files and folders can be in an image, no links or devices",
                path.display()
            ),
            Self::Name(path) => write!(
                f,
                "{}: a name in an image is UTF-8 and at most 255 bytes long",
                path.display()
            ),
            Self::Size(path) => write!(f, "{}: too large for an image", path.display()),
            Self::Time(text) => write!(
                f,
                "SOURCE_DATE_EPOCH is '{text}': it should be a number of seconds since 1970"
            ),
        }
    }
}

impl std::error::Error for FilesError {}

impl From<Error> for FilesError {
    fn from(error: Error) -> Self {
        Self::Io(error)
    }
}

/// The time that files are said to be from, in seconds since 1970: `SOURCE_DATE_EPOCH`, or 0, which
/// means that nobody knows.
pub fn time_of_sources() -> Result<u32, FilesError> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| FilesError::Time(text)),
        _ => Ok(0),
    }
}

/// Packs all that is in a folder.
pub fn pack(folder: &Path, time: u32) -> Result<Vec<u8>, FilesError> {
    let mut archive = Archive {
        bytes: Vec::new(),
        time,
        entries: 0,
    };
    archive.add_folder(folder, "")?;
    let in_memory = |error| FilesError::Io(Error::io(folder, error));
    trailer(&mut archive.bytes).map_err(in_memory)?;
    Ok(archive.bytes)
}

struct Archive {
    bytes: Vec<u8>,
    time: u32,
    entries: u32,
}

impl Archive {
    /// Adds what is in a folder that is called `prefix` in the archive.
    fn add_folder(&mut self, folder: &Path, prefix: &str) -> Result<(), FilesError> {
        let failed = |error| FilesError::Io(Error::io(folder, error));
        let mut paths = fs::read_dir(folder)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<PathBuf>>>()
            .map_err(failed)?;
        // By bytes: no language's order.
        paths.sort_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| name.len() <= 255) else {
                return Err(FilesError::Name(path));
            };
            let name = format!("{prefix}{name}");
            let failed = |error| FilesError::Io(Error::io(&path, error));
            let metadata = fs::symlink_metadata(&path).map_err(failed)?;
            if metadata.is_dir() {
                self.add(&name, FOLDER, b"").map_err(failed)?;
                self.add_folder(&path, &format!("{name}/"))?;
            } else if metadata.is_file() {
                let content = fs::read(&path).map_err(failed)?;
                if u32::try_from(content.len()).is_err() {
                    return Err(FilesError::Size(path));
                }
                self.add(&name, FILE, &content).map_err(failed)?;
            } else {
                return Err(FilesError::Kind(path));
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let entry = Builder::new(name)
            .ino(self.entries)
            .mode(mode)
            .nlink(1)
            .mtime(self.time);
        let mut writer = entry.write(&mut self.bytes, content.len() as u32);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }
}

/// Writes what is to be linked into an app to a file named by its content: cargo links again when
/// that changes, because the linker's arguments do. Older ones of the app are removed.
pub fn place(content: &[u8], folder: &Path, app: &str, extension: &str) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let name = format!("{app}-{:016x}{extension}", hasher.finish());
    let path = folder.join(&name);
    if fs::read(&path).is_ok_and(|there| there == content) {
        return Ok(path);
    }
    let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    for entry in entries.filter_map(Result::ok) {
        let other = entry.file_name();
        let hash = other
            .to_str()
            .and_then(|other| other.strip_suffix(extension)?.strip_prefix(app))
            .and_then(|rest| rest.strip_prefix('-'));
        if hash.is_some_and(|hash| hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok()) {
            // If it stays, it is only in the way.
            let _ = fs::remove_file(entry.path());
        }
    }
    write(&path, content)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_kernel::fs::archive;
    use segue_kernel::fs::tmp::Tmp;
    use segue_kernel::fs::tree::Tree;

    fn fill(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    #[test]
    fn the_kernel_finds_what_was_packed() {
        let folder = tempfile::tempdir().unwrap();
        fill(
            folder.path(),
            &["www/index.html", "www/a/b.txt", "top", "ümlaut"],
        );
        fs::create_dir(folder.path().join("empty")).unwrap();
        let packed = pack(folder.path(), 77).unwrap();
        let mut tree = Tree::new();
        archive::add(&mut tree, packed.leak()).unwrap();
        let files = segue_kernel::fs::Files::new(tree, Tmp::new(1 << 20));
        for name in ["www/index.html", "www/a/b.txt", "top", "ümlaut"] {
            assert_eq!(files.content(name.as_bytes()), Some(name.as_bytes()));
            let stat = files.stat(name.as_bytes()).unwrap();
            assert_eq!((stat.st_mode, stat.st_mtim.tv_sec), (0o100_444, 77));
        }
        assert_eq!(files.stat(b"empty").unwrap().st_mode, 0o040_555);
    }

    #[test]
    fn equal_folders_give_equal_bytes() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(one.path(), &["a/x", "b", "a/y", "c"]);
        fill(other.path(), &["c", "a/y", "b", "a/x"]);
        assert_eq!(pack(one.path(), 5).unwrap(), pack(other.path(), 5).unwrap());
        fill(other.path(), &["d"]);
        assert_ne!(pack(one.path(), 5).unwrap(), pack(other.path(), 5).unwrap());
    }

    #[test]
    fn links_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc", &link).unwrap();
        assert!(matches!(pack(folder.path(), 0), Err(FilesError::Kind(path)) if path == link));
        let none = folder.path().join("none");
        assert!(matches!(pack(&none, 0), Err(FilesError::Io(_))));
    }

    #[test]
    fn an_archive_has_one_place_for_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("files");
        let first = place(b"one", &folder, "kv", EXTENSION).unwrap();
        assert_eq!(place(b"one", &folder, "kv", EXTENSION).unwrap(), first);
        let other_app = place(b"one", &folder, "kv-two", EXTENSION).unwrap();
        let second = place(b"two", &folder, "kv", EXTENSION).unwrap();
        assert_ne!(first, second);
        assert!(!first.exists() && other_app.exists());
        assert_eq!(fs::read(second).unwrap(), b"two");
    }
}
