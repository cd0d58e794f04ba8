//! An image's own file, put together again from its memory while it runs: that is what a switch
//! keeps for the way back, whoever started the image and however.
//!
//! All of the file but its headers and its data segment stays in read-only memory as it was loaded,
//! relocated words apart. The build sees to the rest: section `.segue.origin`, read-only as well,
//! holds the headers ([`HEADERS_LEN`] bytes, padded with zeroes) and the data segment as the file
//! has it, and the file has zeroes where a word is relocated.

use core::fmt;
use core::ops::Range;

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::relocation::RelaIterator;
use elf::segment::ProgramHeader;

use super::elf::{Image, ImageError, headers};
use super::slice_at;

/// Bytes in the section for the file's headers.
pub const HEADERS_LEN: usize = 512;

const WORD: usize = 8;
const RELA_LEN: usize = 24;

/// Why an image's file was not put together, or its origin not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginError {
    /// The image has no origin section, or one of another size.
    Size {
        /// Bytes it has.
        have: usize,
        /// Bytes it needs.
        need: usize,
    },
    /// The headers are longer than there is room for.
    Headers,
    /// The file is shorter or longer than it has to be.
    Length,
    /// A segment is not where the headers say.
    Segment,
    /// Relocations of a kind (RELR) that leaves no trace of what was there.
    Relocations,
    /// What came out is no image.
    Image(ImageError),
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { have, need } => write!(
                f,
                "section .segue.origin has {have} bytes and needs {need}: was the image linked by \
                 Segue's linker script?"
            ),
            Self::Headers => write!(f, "the ELF headers take more than {HEADERS_LEN} bytes"),
            Self::Length => f.write_str("the file has another length"),
            Self::Segment => f.write_str("a segment is not where the headers say"),
            Self::Relocations => f.write_str("the image has packed relocations (RELR)"),
            Self::Image(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OriginError {}

impl From<ImageError> for OriginError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// Fills the origin section, which is at `section` of a file that is complete otherwise: for tools.
pub fn keep(file: &mut [u8], section: Range<usize>) -> Result<(), OriginError> {
    Image::parse(file)?;
    let first = headers_of(file)?;
    forget_relocated(file, |_| true)?;
    let data = data(file)?;
    let need = HEADERS_LEN.saturating_add(data.len());
    let have = section.len();
    if have != need {
        return Err(OriginError::Size { have, need });
    }
    file.copy_within(data, section.start.saturating_add(HEADERS_LEN));
    let kept = file.get_mut(section).and_then(|s| s.first_chunk_mut());
    *kept.ok_or(OriginError::Segment)? = first;
    Ok(())
}

/// Length of the file, in bytes, that an image with this origin section comes from.
pub fn file_len(origin: &[u8]) -> Result<usize, OriginError> {
    let mut end = 0;
    for program in programs(origin)? {
        end = end.max(range(&program)?.end);
    }
    Ok(end)
}

/// Puts the file together. `memory` is the image's, from its base on, at least to the end of its
/// last segment that is not writable; `file` is [`file_len`] zeroes.
pub fn rebuild(origin: &[u8], memory: &[u8], file: &mut [u8]) -> Result<(), OriginError> {
    if file.len() != file_len(origin)? {
        return Err(OriginError::Length);
    }
    let (first, data) = origin.split_at_checked(HEADERS_LEN).unwrap_or_default();
    let mut base = None;
    for program in programs(origin)? {
        let base = *base.get_or_insert(program.p_vaddr);
        let from = if program.p_flags & abi::PF_W != 0 {
            slice_at(data, 0, program.p_filesz)
        } else {
            let offset = program.p_vaddr.checked_sub(base);
            offset.and_then(|offset| slice_at(memory, offset, program.p_filesz))
        };
        let to = file.get_mut(range(&program)?);
        let (from, to) = from.zip(to).ok_or(OriginError::Segment)?;
        to.copy_from_slice(from);
    }
    let start = file.get_mut(..first.len()).ok_or(OriginError::Length)?;
    start.copy_from_slice(first);
    forget_relocated(file, |program| program.p_flags & abi::PF_W == 0)?;
    Image::parse(file)?;
    Ok(())
}

/// The segments that the file has bytes of.
fn programs(file: &[u8]) -> Result<impl Iterator<Item = ProgramHeader>, OriginError> {
    let (_, table) = headers(file)?;
    let loaded = |p: &ProgramHeader| p.p_type == abi::PT_LOAD && p.p_filesz != 0;
    Ok(table.iter().filter(loaded))
}

/// Where a segment is in the file.
fn range(program: &ProgramHeader) -> Result<Range<usize>, OriginError> {
    let end = program.p_offset.checked_add(program.p_filesz);
    let start = usize::try_from(program.p_offset).ok();
    let end = end.and_then(|end| usize::try_from(end).ok());
    let (start, end) = start.zip(end).ok_or(OriginError::Segment)?;
    Ok(start..end)
}

/// The file up to its first segment.
fn headers_of(file: &[u8]) -> Result<[u8; HEADERS_LEN], OriginError> {
    let mut out = [0; HEADERS_LEN];
    let mut first = file.len();
    for program in programs(file)? {
        first = first.min(range(&program)?.start);
    }
    let bytes = file.get(..first).ok_or(OriginError::Segment)?;
    let (head, padding) = bytes.split_at_checked(HEADERS_LEN).unwrap_or((bytes, &[]));
    // What follows is not kept.
    if padding.iter().any(|&byte| byte != 0) {
        return Err(OriginError::Headers);
    }
    let kept = out.get_mut(..head.len()).ok_or(OriginError::Headers)?;
    kept.copy_from_slice(head);
    Ok(out)
}

/// Where in the file its one writable segment is.
fn data(file: &[u8]) -> Result<Range<usize>, OriginError> {
    let mut writable = programs(file)?.filter(|p| p.p_flags & abi::PF_W != 0);
    let range = writable.next().map_or(Ok(0..0), |p| range(&p))?;
    match writable.next() {
        None => Ok(range),
        Some(_) => Err(OriginError::Segment),
    }
}

/// Writes zeroes where words are relocated in the segments that are chosen.
fn forget_relocated(
    file: &mut [u8],
    chosen: impl Fn(&ProgramHeader) -> bool,
) -> Result<(), OriginError> {
    // It lies in the file: found there again without borrowing from it.
    let entries = {
        let image = Image::parse(file)?;
        let table = image.rela_table().ok_or(OriginError::Relocations)?;
        let start = (table.as_ptr() as usize).wrapping_sub(file.as_ptr() as usize);
        start..start.saturating_add(table.len())
    };
    for at in entries.step_by(RELA_LEN) {
        let entry = file.get(at..at.saturating_add(RELA_LEN));
        let entry = entry.ok_or(OriginError::Segment)?;
        let Some(entry) = RelaIterator::new(LittleEndian, Class::ELF64, entry).next() else {
            return Err(OriginError::Segment);
        };
        let place = programs(file)?.find_map(|program| {
            let offset = entry.r_offset.checked_sub(program.p_vaddr)?;
            let at = usize::try_from(program.p_offset.checked_add(offset)?).ok()?;
            (offset < program.p_filesz).then_some((at, chosen(&program)))
        });
        // In zeroed memory there is nothing of the file.
        let Some((at, true)) = place else { continue };
        let word = file.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
        *word.ok_or(OriginError::Segment)? = [0; WORD];
    }
    Ok(())
}
