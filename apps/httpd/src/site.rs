//! The files, by the path a request asks for.

use httpdate::HttpDate;
use segue_serve::offset_in;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// One file.
#[derive(Debug)]
pub struct Page {
    /// Its content.
    pub body: &'static [u8],
    /// When it was changed, if that is known.
    pub modified: Option<HttpDate>,
    kind: &'static str,
    /// Made when first asked for: it takes as long as the content is large, and clients
    /// wait for an image that starts.
    etag: OnceLock<String>,
    headers: OnceLock<String>,
}

impl Page {
    /// A strong entity tag, with its quotes.
    #[must_use]
    pub fn etag(&self) -> &str {
        self.etag.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.body.hash(&mut hasher);
            format!("\"{:x}-{:016x}\"", self.body.len(), hasher.finish())
        })
    }

    /// The headers that describe it, each with its line end: type, tag, date, ranges.
    #[must_use]
    pub fn headers(&self) -> &str {
        self.headers.get_or_init(|| {
            let mut headers = format!(
                "Content-Type: {}\r\nETag: {}\r\nAccept-Ranges: bytes\r\n",
                self.kind,
                self.etag()
            );
            if let Some(modified) = self.modified {
                headers.push_str(&format!("Last-Modified: {modified}\r\n"));
            }
            headers
        })
    }
}

/// What a path stands for.
#[derive(Debug)]
pub enum Found<'a> {
    /// A file.
    Page(&'a Page),
    /// A folder, asked for without the slash at the end.
    Folder,
    /// Nothing.
    Nothing,
}

/// All files.
#[derive(Debug, Default)]
pub struct Site {
    /// Pages by path, with `/` in front; those called index.html by their folder's path too. `None`
    /// for a folder's path without its slash.
    pages: HashMap<Vec<u8>, Option<usize>>,
    all: Vec<Page>,
    kept: Vec<&'static [u8]>,
}

/// The tag of a file in what stays from image to image: in which slice of it, where there, and how
/// long it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag(usize, usize, usize, String);

/// What names of places in what stays begin with; those of files begin with `/`.
const KEPT: &str = "ramdisk ";

/// Where the content of a file that lives for ever comes from.
pub type Content = fn(&Path) -> io::Result<&'static [u8]>;

impl Site {
    /// Takes all files below a folder.
    ///
    /// # Errors
    /// When the folder or a file can't be read; says which.
    pub fn load(root: &Path, content: Content) -> io::Result<Self> {
        let mut site = Self::default();
        let mut folders = vec![(root.to_owned(), b"/".to_vec())];
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        while let Some((folder, url)) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(|error| named(&folder, error))? {
                let entry = entry.map_err(|error| named(&folder, error))?;
                let path: PathBuf = entry.path();
                let url = [&url[..], entry.file_name().as_encoded_bytes()].concat();
                let metadata = std::fs::metadata(&path).map_err(|error| named(&path, error))?;
                if metadata.is_dir() {
                    folders.push((path, [&url[..], b"/"].concat()));
                } else {
                    let body = content(&path).map_err(|error| named(&path, error))?;
                    site.add(url, body, metadata.modified().ok());
                }
            }
        }
        Ok(site)
    }

    /// Adds a file by its path, which starts with `/`.
    pub fn add(&mut self, url: Vec<u8>, body: &'static [u8], modified: Option<SystemTime>) {
        // Times before 1970, and the time of files whose time nobody knows.
        let modified = modified
            .filter(|time| *time > UNIX_EPOCH)
            // Beyond what HTTP can say, `httpdate` would panic.
            .filter(|time| {
                time.duration_since(UNIX_EPOCH)
                    .is_ok_and(|t| t.as_secs() < 253_402_300_800)
            })
            .map(HttpDate::from);
        let index = self.all.len();
        self.all.push(Page {
            body,
            modified,
            kind: content_type(&url),
            etag: OnceLock::new(),
            headers: OnceLock::new(),
        });
        for (at, _) in url.iter().enumerate().filter(|(_, b)| **b == b'/').skip(1) {
            if let Some(folder) = url.get(..at) {
                self.pages.entry(folder.to_vec()).or_insert(None);
            }
        }
        if let Some(folder) = url.strip_suffix(b"index.html")
            && folder.ends_with(b"/")
        {
            self.pages.insert(folder.to_vec(), Some(index));
        }
        self.pages.insert(url, Some(index));
    }

    /// Says what stays where it is from image to image: files that lie there are the next image's,
    /// too.
    pub fn keep(&mut self, kept: Vec<&'static [u8]>) {
        self.kept = kept;
    }

    fn place(&self, slice: &[u8]) -> Option<(usize, usize)> {
        let mut kept = self.kept.iter().enumerate();
        kept.find_map(|(index, kept)| Some((index, offset_in(kept, slice)?)))
    }

    /// Tags made so far that are good for the next image.
    #[must_use]
    pub fn tags(&self) -> Vec<Tag> {
        let tag = |page: &Page| {
            let (index, at) = self.place(page.body)?;
            Some(Tag(index, at, page.body.len(), page.etag.get()?.clone()))
        };
        self.all.iter().filter_map(tag).collect()
    }

    /// Takes over tags of the image before.
    pub fn tag(&self, tags: Vec<Tag>) {
        let places = tags
            .into_iter()
            .map(|Tag(i, at, len, tag)| ((i, at, len), tag));
        let mut tags: HashMap<_, _> = places.collect();
        for page in &self.all {
            let place = self.place(page.body);
            if let Some(tag) = place.and_then(|(i, at)| tags.remove(&(i, at, page.body.len()))) {
                let _ = page.etag.set(tag);
            }
        }
    }

    /// A name for what `slice` is a part of, and where there it lies, by which an image that has the
    /// same finds it: the place in what stays, or the path and the tag of a file.
    #[must_use]
    pub fn name_of(&self, slice: &[u8]) -> Option<(String, usize)> {
        if let Some((index, at)) = self.place(slice) {
            return Some((format!("{KEPT}{index}"), at));
        }
        let mut pages = self.pages.iter();
        pages.find_map(|(url, index)| {
            let page = self.all.get((*index)?)?;
            let at = offset_in(page.body, slice)?;
            let url = String::from_utf8_lossy(url);
            Some((format!("{url} {}", page.etag()), at))
        })
    }

    /// What has that name. A file of another path will do, if it has the tag.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&'static [u8]> {
        if let Some(index) = name.strip_prefix(KEPT) {
            return self.kept.get(index.parse::<usize>().ok()?).copied();
        }
        let (_, etag) = name.rsplit_once(' ')?;
        // It begins with the length: only those are read that have it.
        let len = etag.strip_prefix('"')?.split_once('-')?.0;
        let len = usize::from_str_radix(len, 16).ok()?;
        let mut pages = self.all.iter().filter(|page| page.body.len() == len);
        pages.find(|page| page.etag() == etag).map(|page| page.body)
    }

    /// What a path stands for; it is decoded and has no query.
    #[must_use]
    pub fn find(&self, path: &[u8]) -> Found<'_> {
        match self.pages.get(path) {
            None => Found::Nothing,
            Some(None) => Found::Folder,
            Some(Some(index)) => self.all.get(*index).map_or(Found::Nothing, Found::Page),
        }
    }

    /// Number of files.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.all.iter().map(|page| page.body.len() as u64).sum()
    }
}

/// The media type by the name's extension.
fn content_type(url: &[u8]) -> &'static str {
    let name = url.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let Some(dot) = name.iter().rposition(|b| *b == b'.') else {
        return "application/octet-stream";
    };
    let extension = name.get(dot + 1..).unwrap_or_default().to_ascii_lowercase();
    match &extension[..] {
        b"html" | b"htm" => "text/html; charset=utf-8",
        b"css" => "text/css; charset=utf-8",
        b"js" | b"mjs" => "text/javascript; charset=utf-8",
        b"txt" | b"log" => "text/plain; charset=utf-8",
        b"md" => "text/markdown; charset=utf-8",
        b"csv" => "text/csv; charset=utf-8",
        b"xml" => "application/xml",
        b"json" | b"map" => "application/json",
        b"webmanifest" => "application/manifest+json",
        b"wasm" => "application/wasm",
        b"pdf" => "application/pdf",
        b"zip" => "application/zip",
        b"gz" | b"tgz" => "application/gzip",
        b"svg" => "image/svg+xml",
        b"png" => "image/png",
        b"jpg" | b"jpeg" => "image/jpeg",
        b"gif" => "image/gif",
        b"webp" => "image/webp",
        b"avif" => "image/avif",
        b"ico" => "image/x-icon",
        b"woff" => "font/woff",
        b"woff2" => "font/woff2",
        b"ttf" => "font/ttf",
        b"mp3" => "audio/mpeg",
        b"mp4" => "video/mp4",
        b"webm" => "video/webm",
        _ => "application/octet-stream",
    }
}
