//! Images: checks a linked ELF file so that loading it can't fail, and loads it.
//!
//! An image is a static position-independent ELF64 file for x86-64 (ET_DYN without interpreter),
//! linked at some page-aligned base. Only program headers are read, sections may be stripped.
//! PT_LOAD says what is in memory, PT_DYNAMIC leads to the relocations, PT_TLS is the template
//! for thread-local storage, PT_NOTE holds the identity.
//!
//! Sources: System V ABI, chapters 4 and 5 (ELF header, program header, dynamic section, notes,
//! SHT_RELR); System V ABI AMD64 supplement, section 4.4 (R_X86_64_RELATIVE).

use core::fmt;
use core::ops::Range;

use arrayvec::ArrayVec;
use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::ParseError;
use elf::relocation::RelaIterator;
use elf::segment::{ProgramHeader, SegmentTable};

use super::digest::Digest;
use super::ident::{LABEL_LEN, trimmed};
use super::{Ident, Reader, slice_at};

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// Most segments that an image may have.
pub const MAX_SEGMENTS: usize = 8;
/// Most memory an image may take up, bytes.
const MAX_SPAN: u64 = 1 << 30;
/// Largest template for thread-local storage, bytes: each thread gets one.
const MAX_TLS: u64 = 1 << 20;

const FILE_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
const DYNAMIC_LEN: usize = 16;
const RELA_LEN: u64 = 24;
const RELR_LEN: u64 = 8;
/// Bytes that a relocation changes.
const WORD: u64 = 8;

// Dynamic section tags and flags that crate `elf` has no names for (System V ABI).
const DT_RELRSZ: i64 = 35;
const DT_RELR: i64 = 36;
const DT_RELRENT: i64 = 37;
const DF_TEXTREL: u64 = 4;

/// What may be done with a segment's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perms {
    /// Loads.
    pub read: bool,
    /// Stores; never together with `execute`.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

/// Memory that gets its own permissions. No two segments share a page; pages between segments
/// belong to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset from the image's base, page-aligned.
    pub offset: u64,
    /// Length in bytes, not 0; need not be a multiple of the page size.
    pub mem_len: u64,
    /// What may be done with it.
    pub perms: Perms,
}

/// The template for thread-local storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Offset from the image's base, a multiple of `align`.
    pub offset: u64,
    /// Initialised bytes there; the rest is zero. May be 0.
    pub file_len: u64,
    /// Bytes each thread needs, at least `file_len`, not 0.
    pub mem_len: u64,
    /// Alignment of each thread's copy: a power of two, at most a page.
    pub align: u64,
}

/// An image that passed all checks.
#[derive(Clone, Debug)]
pub struct Image<'a> {
    /// Lowest address it is linked at.
    link_base: u64,
    entry: u64,
    loads: Loads<'a>,
    tls: Option<Tls>,
    ident: Ident,
    relocations: Relocations<'a>,
}

impl<'a> Image<'a> {
    /// Checks an ELF file.
    pub fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let (header, table) = headers(file)?;

        let mut loads = Loads::default();
        for program in table.iter().filter(|p| p.p_type == abi::PT_LOAD) {
            loads.push(file, &program)?;
        }
        let link_base = loads.base().ok_or(ImageError::NoSegments)?;
        if !loads.0.iter().any(|load| load.perms.execute) {
            return Err(ImageError::NoExecutable);
        }
        let entry = header.e_entry;
        if !loads.0.iter().any(|load| load.is_code(entry)) {
            return Err(ImageError::Entry { entry });
        }

        let (mut dynamic, mut tls) = (None, None);
        for program in table.iter() {
            let duplicate = ImageError::Duplicate {
                kind: program.p_type,
            };
            match program.p_type {
                abi::PT_INTERP => return Err(ImageError::Interpreter),
                abi::PT_DYNAMIC if program.p_filesz != 0 => {
                    let entries = loads.placed(file, &program)?;
                    if dynamic.replace(entries).is_some() {
                        return Err(duplicate);
                    }
                }
                abi::PT_TLS if program.p_memsz != 0 => {
                    let template = loads.tls(file, &program)?;
                    if tls.replace(template).is_some() {
                        return Err(duplicate);
                    }
                }
                abi::PT_NOTE if program.p_filesz != 0 => {
                    loads.placed(file, &program)?;
                }
                _ => {}
            }
        }

        let desc = file.get(ident_range(file)?).unwrap_or_default();
        let image = Self {
            link_base,
            entry,
            tls,
            ident: Ident::parse(desc)?,
            relocations: Relocations::find(&loads, dynamic.unwrap_or_default())?,
            loads,
        };
        image.for_each_relocation(|_, _| {})?;
        Ok(image)
    }

    /// What it says of itself.
    pub fn ident(&self) -> &Ident {
        &self.ident
    }

    /// The lowest address it is linked at.
    pub fn link_base(&self) -> u64 {
        self.link_base
    }

    /// Bytes of memory it takes up, a multiple of the page size.
    pub fn span(&self) -> u64 {
        self.loads.span()
    }

    /// The entry's offset from its base.
    pub fn entry_offset(&self) -> u64 {
        self.entry.wrapping_sub(self.link_base)
    }

    /// Its segments, ascending.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.loads.0.iter().map(|load| Segment {
            offset: load.start.wrapping_sub(self.link_base),
            mem_len: load.end.wrapping_sub(load.start),
            perms: load.perms,
        })
    }

    /// The table of relocations with addends; `None` if there are others.
    pub(super) fn rela_table(&self) -> Option<&'a [u8]> {
        let Relocations { rela, relr } = self.relocations;
        relr.is_empty().then_some(rela)
    }

    /// What the file holds of each segment, in the same order.
    pub fn segment_files(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.loads.0.iter().map(|load| load.data)
    }

    /// The template for thread-local storage, if it has any.
    pub fn tls(&self) -> Option<Tls> {
        self.tls
    }

    /// Writes the image as it must stand in memory at `base` to `dest`, all of it: segments,
    /// zero bytes between and after them, relocations. Each segment is held against its digest
    /// where it stands, before anything is relocated: what `dest` is when one is wrong is of no use.
    /// On other errors it is untouched.
    pub fn load(&self, base: u64, dest: &mut [u8], digests: &[Digest]) -> Result<(), LoadError> {
        let span = self.span();
        if dest.len() as u64 != span {
            return Err(LoadError::Length {
                len: dest.len(),
                span,
            });
        }
        if !base.is_multiple_of(PAGE_SIZE) || base.checked_add(span).is_none() {
            return Err(LoadError::Base { base, span });
        }
        let (segments, digested) = (self.loads.0.len(), digests.len());
        if segments != digested {
            return Err(LoadError::Digests { segments, digested });
        }

        // Offsets are below `span` and ascend (`Loads::push`): no range is out of `dest`.
        let mut written = 0;
        for (load, digest) in self.loads.0.iter().zip(digests) {
            let start = self.offset(load.start);
            let end = start.wrapping_add(load.data.len());
            if let Some(gap) = dest.get_mut(written..start) {
                gap.fill(0);
            }
            if let Some(data) = dest.get_mut(start..end) {
                data.copy_from_slice(load.data);
                if Digest::of(&[data]) != *digest {
                    return Err(LoadError::Segment { start: load.start });
                }
            }
            written = end;
        }
        if let Some(rest) = dest.get_mut(written..) {
            rest.fill(0);
        }

        // `parse` took the same walk over the same bytes: it ends well.
        let _ = self.for_each_relocation(|target, value| {
            let slot = dest.get_mut(self.offset(target)..);
            if let Some(word) = slot.and_then(|slot| slot.first_chunk_mut()) {
                let moved = value.wrapping_sub(self.link_base).wrapping_add(base);
                *word = moved.to_le_bytes();
            }
        });
        Ok(())
    }

    /// Where a link address of the image is in its memory. Less than `MAX_SPAN`.
    fn offset(&self, address: u64) -> usize {
        address.wrapping_sub(self.link_base) as usize
    }

    /// Calls `apply(target, value)`, both link addresses, for each relocation, checking each.
    fn for_each_relocation(&self, mut apply: impl FnMut(u64, u64)) -> Result<(), ImageError> {
        let image_end = self.link_base.wrapping_add(self.span());
        let value_at = |target: u64, value: u64| {
            if value < self.link_base || value > image_end {
                return Err(ImageError::RelocationValue { target, value });
            }
            Ok(value)
        };

        for entry in RelaIterator::new(LittleEndian, Class::ELF64, self.relocations.rela) {
            let target = entry.r_offset;
            if entry.r_type != abi::R_X86_64_RELATIVE || entry.r_sym != 0 {
                return Err(ImageError::RelocationKind {
                    kind: entry.r_type,
                    symbol: entry.r_sym,
                    target,
                });
            }
            self.loads.check_target(target)?;
            apply(target, value_at(target, entry.r_addend as u64)?);
        }

        for target in Relr::new(self.relocations.relr) {
            let target = target?;
            self.loads.check_target(target)?;
            // RELR keeps the value where it will be written. There is none in zeroed memory.
            let value = self
                .loads
                .bytes_at(target, WORD)
                .and_then(|bytes| Reader(bytes).u64())
                .ok_or(ImageError::RelocationTarget { target })?;
            apply(target, value_at(target, value)?);
        }
        Ok(())
    }
}

/// Where in an ELF file the descriptor of the identity note is. Says nothing of what is in it, nor
/// of the rest of the file: for tools that fill it in.
pub fn ident_range(file: &[u8]) -> Result<Range<usize>, ImageError> {
    let (_, table) = headers(file)?;
    let mut found = None;
    for program in table.iter().filter(|p| p.p_type == abi::PT_NOTE) {
        let outside = ImageError::SegmentFile {
            offset: program.p_offset,
            len: program.p_filesz,
            file: file.len(),
        };
        let notes = slice_at(file, program.p_offset, program.p_filesz).ok_or(outside)?;
        for range in ident_notes(notes) {
            let start = usize::try_from(program.p_offset).map_err(|_| outside)?;
            let start = start.saturating_add(range.start);
            let range = start..start.saturating_add(range.len());
            if found.replace(range).is_some() {
                return Err(ImageError::IdentTwice);
            }
        }
    }
    found.ok_or(ImageError::NoIdent)
}

/// Descriptors of identity notes among notes. Fields and alignment are 4 bytes, as in all notes
/// that toolchains make. Ends at the first note that is cut off.
fn ident_notes(notes: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut rest = Reader(notes);
    core::iter::from_fn(move || {
        loop {
            let owner_len = rest.u32()? as usize;
            let desc_len = rest.u32()? as usize;
            let kind = rest.u32()?;
            let owner = rest.bytes(owner_len)?;
            rest.bytes(owner_len.wrapping_neg() % 4)?;
            let start = notes.len().checked_sub(rest.0.len())?;
            rest.bytes(desc_len)?;
            // The last note may end unpadded.
            let padding = desc_len.wrapping_neg() % 4;
            rest.bytes(padding.min(rest.0.len()))?;
            if owner == Ident::NOTE_OWNER && kind == Ident::NOTE_TYPE {
                return Some(start..start.checked_add(desc_len)?);
            }
        }
    })
}

type Table<'a> = SegmentTable<'a, LittleEndian>;

/// Checks the file header and finds the program headers.
pub(super) fn headers(file: &[u8]) -> Result<(FileHeader<LittleEndian>, Table<'_>), ImageError> {
    let short = ImageError::Truncated {
        need: FILE_HEADER_LEN,
        have: file.len(),
    };
    let (ident, rest) = file.split_at_checked(abi::EI_NIDENT).ok_or(short)?;
    let ident = parse_ident::<LittleEndian>(ident).map_err(|error| match error {
        ParseError::BadMagic(magic) => ImageError::NotElf(magic),
        ParseError::UnsupportedElfClass(class) => ImageError::Class(class),
        ParseError::UnsupportedElfEndianness(order) => ImageError::ByteOrder(order),
        ParseError::UnsupportedVersion((version, _)) => ImageError::ElfVersion(version),
        _ => short,
    })?;
    if ident.1 != Class::ELF64 {
        return Err(ImageError::Class(abi::ELFCLASS32));
    }
    let header = FileHeader::parse_tail(ident, rest).map_err(|_| short)?;
    if header.version != u32::from(abi::EV_CURRENT) {
        return Err(ImageError::ElfVersion(header.version.into()));
    }
    if header.e_type != abi::ET_DYN {
        return Err(ImageError::Type(header.e_type));
    }
    if header.e_machine != abi::EM_X86_64 {
        return Err(ImageError::Machine(header.e_machine));
    }
    if u64::from(header.e_phentsize) != PROGRAM_HEADER_LEN {
        return Err(ImageError::ProgramHeaderSize(header.e_phentsize));
    }
    // 16 bits times 56: no overflow.
    let len = u64::from(header.e_phnum).wrapping_mul(PROGRAM_HEADER_LEN);
    let table = slice_at(file, header.e_phoff, len).ok_or(ImageError::ProgramHeaders {
        offset: header.e_phoff,
        count: header.e_phnum,
        file: file.len(),
    })?;
    Ok((header, Table::new(LittleEndian, Class::ELF64, table)))
}

/// One PT_LOAD. Addresses are those it is linked at.
#[derive(Clone, Copy, Debug)]
struct Load<'a> {
    start: u64,
    /// Not below `start + data.len()`.
    end: u64,
    /// What the file holds of it; the rest is zero.
    data: &'a [u8],
    perms: Perms,
}

impl Load<'_> {
    /// Whether there is code from the file at `address`.
    fn is_code(&self, address: u64) -> bool {
        let offset = address.checked_sub(self.start);
        self.perms.execute && offset.is_some_and(|offset| offset < self.data.len() as u64)
    }
}

/// All PT_LOADs that are not empty: page-aligned, ascending, no page in common, together no
/// longer than `MAX_SPAN`.
#[derive(Clone, Debug, Default)]
struct Loads<'a>(ArrayVec<Load<'a>, MAX_SEGMENTS>);

impl<'a> Loads<'a> {
    fn push(&mut self, file: &'a [u8], program: &ProgramHeader) -> Result<(), ImageError> {
        let (start, len) = (program.p_vaddr, program.p_memsz);
        if program.p_filesz > len {
            return Err(ImageError::SegmentSizes {
                start,
                file_len: program.p_filesz,
                mem_len: len,
            });
        }
        if len == 0 {
            return Ok(());
        }
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(ImageError::SegmentAlignment { start });
        }
        let wraps = ImageError::SegmentWraps { start, len };
        let end = start.checked_add(len).ok_or(wraps)?;
        let page_end = end.checked_next_multiple_of(PAGE_SIZE).ok_or(wraps)?;
        if let Some(previous) = self.page_end()
            && start < previous
        {
            return Err(ImageError::SegmentOrder { start, previous });
        }
        let span = page_end.saturating_sub(self.base().unwrap_or(start));
        if span > MAX_SPAN {
            return Err(ImageError::Span { span });
        }
        let data =
            slice_at(file, program.p_offset, program.p_filesz).ok_or(ImageError::SegmentFile {
                offset: program.p_offset,
                len: program.p_filesz,
                file: file.len(),
            })?;
        let perms = Perms {
            read: program.p_flags & abi::PF_R != 0,
            write: program.p_flags & abi::PF_W != 0,
            execute: program.p_flags & abi::PF_X != 0,
        };
        if perms.write && perms.execute {
            return Err(ImageError::WritableCode { start });
        }
        let load = Load {
            start,
            end,
            data,
            perms,
        };
        let push = self.0.try_push(load);
        push.map_err(|_| ImageError::TooManySegments)
    }

    fn base(&self) -> Option<u64> {
        self.0.first().map(|load| load.start)
    }

    /// End of the last segment's last page. `push` saw that it does not overflow.
    fn page_end(&self) -> Option<u64> {
        let end = self.0.last()?.end;
        end.checked_next_multiple_of(PAGE_SIZE)
    }

    fn span(&self) -> u64 {
        let ends = self.page_end().zip(self.base());
        ends.map_or(0, |(end, base)| end.wrapping_sub(base))
    }

    /// What the file holds for addresses, all within one segment.
    fn bytes_at(&self, address: u64, len: u64) -> Option<&'a [u8]> {
        self.0.iter().find_map(|load| {
            let offset = address.checked_sub(load.start)?;
            slice_at(load.data, offset, len)
        })
    }

    /// Checks that the word at `target` can be relocated: it is inside one segment, and not among code.
    /// (Read-only segments are written before they are made so.)
    fn check_target(&self, target: u64) -> Result<(), ImageError> {
        let inside = |load: &Load<'_>| {
            let end = target.checked_add(WORD);
            !load.perms.execute && load.start <= target && end.is_some_and(|end| end <= load.end)
        };
        let found = self.0.iter().any(inside);
        found
            .then_some(())
            .ok_or(ImageError::RelocationTarget { target })
    }

    /// What another program header means, which must be the same by file offset (what loaders and
    /// tools read) and by address (what the image itself reads).
    fn placed(&self, file: &'a [u8], program: &ProgramHeader) -> Result<&'a [u8], ImageError> {
        let by_offset = slice_at(file, program.p_offset, program.p_filesz);
        let by_address = self.bytes_at(program.p_vaddr, program.p_filesz);
        by_address
            .zip(by_offset)
            .filter(|(a, b)| core::ptr::eq(*a, *b))
            .map(|(bytes, _)| bytes)
            .ok_or(ImageError::Unplaced {
                kind: program.p_type,
                address: program.p_vaddr,
                offset: program.p_offset,
                len: program.p_filesz,
            })
    }

    fn tls(&self, file: &'a [u8], program: &ProgramHeader) -> Result<Tls, ImageError> {
        let (address, len) = (program.p_vaddr, program.p_memsz);
        // ELF: 0 and 1 both mean no alignment.
        let align = program.p_align.max(1);
        let good = program.p_filesz <= len
            && len <= MAX_TLS
            && align.is_power_of_two()
            && align <= PAGE_SIZE
            && address.is_multiple_of(align);
        let offset = self.base().and_then(|base| address.checked_sub(base));
        let offset = offset.filter(|&offset| good && offset <= self.span());
        let offset = offset.ok_or(ImageError::Tls {
            address,
            file_len: program.p_filesz,
            mem_len: len,
            align,
        })?;
        if program.p_filesz != 0 {
            self.placed(file, program)?;
        }
        Ok(Tls {
            offset,
            file_len: program.p_filesz,
            mem_len: len,
            align,
        })
    }
}

/// The tables of relocations.
#[derive(Clone, Copy, Debug)]
struct Relocations<'a> {
    rela: &'a [u8],
    relr: &'a [u8],
}

impl<'a> Relocations<'a> {
    /// Finds them by the dynamic section.
    fn find(loads: &Loads<'a>, dynamic: &[u8]) -> Result<Self, ImageError> {
        let (mut rela, mut relr) = (TableTags::default(), TableTags::default());
        for entry in dynamic.chunks_exact(DYNAMIC_LEN) {
            let mut fields = Reader(entry);
            let Some((tag, value)) = fields.u64().zip(fields.u64()) else {
                break;
            };
            let tag = tag as i64;
            let place = match tag {
                abi::DT_NULL => break,
                abi::DT_RELA => &mut rela.address,
                abi::DT_RELASZ => &mut rela.len,
                abi::DT_RELAENT => &mut rela.entry_len,
                DT_RELR => &mut relr.address,
                DT_RELRSZ => &mut relr.len,
                DT_RELRENT => &mut relr.entry_len,
                abi::DT_NEEDED | abi::DT_REL | abi::DT_JMPREL | abi::DT_TEXTREL => {
                    return Err(ImageError::DynamicTag { tag, value });
                }
                abi::DT_FLAGS if value & DF_TEXTREL != 0 => {
                    return Err(ImageError::DynamicTag { tag, value });
                }
                _ => continue,
            };
            if place.replace(value).is_some() {
                return Err(ImageError::DynamicTag { tag, value });
            }
        }
        Ok(Self {
            rela: rela.table(loads, RELA_LEN)?,
            relr: relr.table(loads, RELR_LEN)?,
        })
    }
}

/// What the dynamic section says of one table.
#[derive(Default)]
struct TableTags {
    address: Option<u64>,
    len: Option<u64>,
    entry_len: Option<u64>,
}

impl TableTags {
    fn table<'a>(&self, loads: &Loads<'a>, expected: u64) -> Result<&'a [u8], ImageError> {
        let len = self.len.unwrap_or(0);
        let address = self.address.unwrap_or(0);
        let entry_len = self.entry_len.unwrap_or(expected);
        if len == 0 && self.address.is_none() {
            return Ok(&[]);
        }
        loads
            .bytes_at(address, len)
            .filter(|_| entry_len == expected && len.is_multiple_of(expected))
            .ok_or(ImageError::RelocationTable {
                address,
                len,
                entry_len,
            })
    }
}

/// Targets in a RELR table: an even word is the address of one; an odd one is a bitmap for the
/// 63 words that follow those before.
struct Relr<'a> {
    words: Reader<'a>,
    /// Address of the word that the lowest bit of `bitmap` stands for.
    at: Option<u64>,
    bitmap: u64,
    /// Address that the next bitmap begins at.
    next: Option<u64>,
}

impl<'a> Relr<'a> {
    const BITS: u64 = 63;

    fn new(table: &'a [u8]) -> Self {
        Self {
            words: Reader(table),
            at: None,
            bitmap: 0,
            next: None,
        }
    }
}

impl Iterator for Relr<'_> {
    type Item = Result<u64, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.bitmap == 0 {
            let word = self.words.u64()?;
            if word & 1 == 0 {
                self.next = word.checked_add(WORD);
                return Some(Ok(word));
            }
            let Some(at) = self.next else {
                return Some(Err(ImageError::RelrBitmap { word }));
            };
            self.bitmap = word >> 1;
            self.at = Some(at);
            self.next = at.checked_add(Self::BITS.wrapping_mul(WORD));
        }
        // Not 0: at most 62 bits are skipped.
        let skip = self.bitmap.trailing_zeros();
        let target = self.at?.wrapping_add(u64::from(skip).wrapping_mul(WORD));
        self.bitmap = (self.bitmap >> skip) >> 1;
        self.at = Some(target.wrapping_add(WORD));
        Some(Ok(target))
    }
}

/// Why an image could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The destination is not as long as the image.
    Length {
        /// Bytes in the destination.
        len: usize,
        /// Bytes the image takes up.
        span: u64,
    },
    /// The address is not page-aligned, or the image would go beyond the last address.
    Base {
        /// The address.
        base: u64,
        /// Bytes the image takes up.
        span: u64,
    },
    /// There is not one digest for each segment.
    Digests {
        /// Segments of the image.
        segments: usize,
        /// Digests there are.
        digested: usize,
    },
    /// A segment is not what its digest says.
    Segment {
        /// The address it is linked at.
        start: u64,
    },
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { len, span } => write!(
                f,
                "the image takes up {span} bytes of memory, but was given {len}"
            ),
            Self::Base { base, span } => write!(
                f,
                "an image of {span} bytes can't be loaded at {base:#x}: not page-aligned, or too \
                 high"
            ),
            Self::Digests { segments, digested } => write!(
                f,
                "the image has {segments} segments, and its manifest digests of {digested}"
            ),
            Self::Segment { start } => write!(
                f,
                "the segment at {start:#x} is not what the manifest says: the bundle was altered, \
                 or memory is bad"
            ),
        }
    }
}

impl core::error::Error for LoadError {}

/// Why an ELF file was refused as an image. Addresses are those it is linked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Shorter than an ELF header.
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// Does not begin like an ELF file.
    NotElf([u8; 4]),
    /// Not 64-bit (EI_CLASS).
    Class(u8),
    /// Not little-endian (EI_DATA).
    ByteOrder(u8),
    /// Not ELF version 1.
    ElfVersion(u64),
    /// Not position-independent (e_type).
    Type(u16),
    /// Not for x86-64 (e_machine).
    Machine(u16),
    /// Not the size of an ELF64 program header (e_phentsize).
    ProgramHeaderSize(u16),
    /// The program headers are not inside the file.
    ProgramHeaders {
        /// File offset.
        offset: u64,
        /// How many.
        count: u16,
        /// Bytes in the file.
        file: usize,
    },
    /// Nothing to load.
    NoSegments,
    /// More segments than are supported.
    TooManySegments,
    /// A segment has more bytes in the file than in memory.
    SegmentSizes {
        /// Its address.
        start: u64,
        /// Bytes in the file.
        file_len: u64,
        /// Bytes in memory.
        mem_len: u64,
    },
    /// A segment does not begin at a page.
    SegmentAlignment {
        /// Its address.
        start: u64,
    },
    /// A segment goes beyond the last address.
    SegmentWraps {
        /// Its address.
        start: u64,
        /// Bytes in memory.
        len: u64,
    },
    /// A segment begins before the page where the one before ends.
    SegmentOrder {
        /// Its address.
        start: u64,
        /// Where the last page of the one before ends.
        previous: u64,
    },
    /// A segment is not inside the file.
    SegmentFile {
        /// File offset.
        offset: u64,
        /// Bytes in the file, as the segment says.
        len: u64,
        /// Bytes in the file.
        file: usize,
    },
    /// The image takes up more memory than is supported.
    Span {
        /// Bytes from the first segment to the end of this one.
        span: u64,
    },
    /// A segment is writable and executable.
    WritableCode {
        /// Its address.
        start: u64,
    },
    /// No segment is executable.
    NoExecutable,
    /// The entry is not in an executable segment's bytes from the file.
    Entry {
        /// Its address.
        entry: u64,
    },
    /// It wants a dynamic linker.
    Interpreter,
    /// Two program headers of a kind that may be there once.
    Duplicate {
        /// The kind (p_type).
        kind: u32,
    },
    /// A program header names bytes that are not in a segment, or not at the same place by file
    /// offset and by address.
    Unplaced {
        /// The kind (p_type).
        kind: u32,
        /// Its address.
        address: u64,
        /// File offset.
        offset: u64,
        /// Bytes in the file.
        len: u64,
    },
    /// The template for thread-local storage makes no sense.
    Tls {
        /// Its address.
        address: u64,
        /// Bytes in the file.
        file_len: u64,
        /// Bytes in memory.
        mem_len: u64,
        /// Alignment.
        align: u64,
    },
    /// The dynamic section asks for something that is not supported, or says something twice.
    DynamicTag {
        /// The tag (d_tag).
        tag: i64,
        /// Its value.
        value: u64,
    },
    /// A table of relocations is not in a segment's bytes from the file, or has entries of the
    /// wrong size.
    RelocationTable {
        /// Its address.
        address: u64,
        /// Bytes in it.
        len: u64,
        /// Bytes in an entry.
        entry_len: u64,
    },
    /// A relocation of an unsupported kind.
    RelocationKind {
        /// The kind (ELF64_R_TYPE).
        kind: u32,
        /// The symbol (ELF64_R_SYM).
        symbol: u32,
        /// What it would change.
        target: u64,
    },
    /// A relocation changes something that is not data of the image.
    RelocationTarget {
        /// What it would change.
        target: u64,
    },
    /// A relocation writes an address outside the image.
    RelocationValue {
        /// What it would change.
        target: u64,
        /// The address.
        value: u64,
    },
    /// A RELR bitmap without an address that it belongs to.
    RelrBitmap {
        /// The bitmap.
        word: u64,
    },
    /// No identity note.
    NoIdent,
    /// Two identity notes.
    IdentTwice,
    /// The identity note has not the length it must have.
    IdentLength {
        /// Bytes in its descriptor.
        len: usize,
    },
    /// The identity note has flags that this code does not know.
    IdentFlags {
        /// The flags.
        flags: u32,
    },
    /// No handover ABI version is in the range.
    IdentAbi {
        /// Lowest version.
        min: u32,
        /// Highest version.
        max: u32,
    },
    /// Not a name.
    IdentName([u8; LABEL_LEN]),
    /// Not a version.
    IdentVersion([u8; LABEL_LEN]),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(
                f,
                "the image is cut off: an ELF header has {need} bytes and there are {have}"
            ),
            Self::NotElf(magic) => write!(
                f,
                "the image is not an ELF file: it begins with \"{}\"",
                magic.escape_ascii()
            ),
            Self::Class(class) => {
                write!(
                    f,
                    "the image is not a 64-bit ELF file: its class is {class}"
                )
            }
            Self::ByteOrder(order) => write!(
                f,
                "the image is not a little-endian ELF file: its byte order is {order}"
            ),
            Self::ElfVersion(version) => {
                write!(f, "the image is of ELF version {version}, not 1")
            }
            Self::Type(kind) => write!(
                f,
                "the image is not position-independent: its ELF type is {kind}, not 3 (link it as \
                 a static PIE)"
            ),
            Self::Machine(machine) => write!(
                f,
                "the image is not for x86-64: its ELF machine is {machine}, not 62"
            ),
            Self::ProgramHeaderSize(size) => write!(
                f,
                "the image's program headers have {size} bytes each, not {PROGRAM_HEADER_LEN}"
            ),
            Self::ProgramHeaders {
                offset,
                count,
                file,
            } => write!(
                f,
                "the image's {count} program headers at offset {offset:#x} are not inside its \
                 {file} bytes"
            ),
            Self::NoSegments => write!(f, "the image has nothing to load"),
            Self::TooManySegments => {
                write!(f, "the image has more than {MAX_SEGMENTS} segments to load")
            }
            Self::SegmentSizes {
                start,
                file_len,
                mem_len,
            } => write!(
                f,
                "the segment at {start:#x} has {file_len:#x} bytes in the file but only \
                 {mem_len:#x} in memory"
            ),
            Self::SegmentAlignment { start } => {
                write!(f, "the segment at {start:#x} does not begin at a page")
            }
            Self::SegmentWraps { start, len } => write!(
                f,
                "the segment at {start:#x} with {len:#x} bytes goes beyond the last address"
            ),
            Self::SegmentOrder { start, previous } => write!(
                f,
                "the segment at {start:#x} overlaps or precedes the one before, whose last page \
                 ends at {previous:#x}"
            ),
            Self::SegmentFile { offset, len, file } => write!(
                f,
                "the segment's {len:#x} bytes at file offset {offset:#x} are not inside the \
                 image's {file:#x} bytes"
            ),
            Self::Span { span } => write!(
                f,
                "the image takes up {span:#x} bytes of memory; {MAX_SPAN:#x} are allowed"
            ),
            Self::WritableCode { start } => {
                write!(
                    f,
                    "the segment at {start:#x} is both writable and executable"
                )
            }
            Self::NoExecutable => write!(f, "the image has no executable segment"),
            Self::Entry { entry } => {
                write!(f, "the image's entry {entry:#x} is not in its code")
            }
            Self::Interpreter => write!(
                f,
                "the image wants a dynamic linker (link it as a static PIE)"
            ),
            Self::Duplicate { kind } => {
                write!(f, "the image has two program headers of type {kind}")
            }
            Self::Unplaced {
                kind,
                address,
                offset,
                len,
            } => write!(
                f,
                "the program header of type {kind} ({len:#x} bytes at {address:#x}, file offset \
                 {offset:#x}) names bytes that no segment has at that place"
            ),
            Self::Tls {
                address,
                file_len,
                mem_len,
                align,
            } => write!(
                f,
                "the thread-local storage template at {address:#x} ({file_len:#x} bytes in the \
                 file, {mem_len:#x} in memory, alignment {align:#x}) makes no sense"
            ),
            Self::DynamicTag { tag, value } => write!(
                f,
                "the image's dynamic section has tag {tag} (value {value:#x}), which is not \
                 supported there, or has it twice"
            ),
            Self::RelocationTable {
                address,
                len,
                entry_len,
            } => write!(
                f,
                "the image's relocation table ({len:#x} bytes at {address:#x}, {entry_len} an \
                 entry) is not inside a segment, or is of the wrong size"
            ),
            Self::RelocationKind {
                kind,
                symbol,
                target,
            } => write!(
                f,
                "the relocation of {target:#x} is of type {kind}, symbol {symbol}; only \
                 R_X86_64_RELATIVE is supported"
            ),
            Self::RelocationTarget { target } => {
                write!(
                    f,
                    "a relocation changes {target:#x}, which is not the image's data"
                )
            }
            Self::RelocationValue { target, value } => write!(
                f,
                "the relocation of {target:#x} points to {value:#x}, outside the image"
            ),
            Self::RelrBitmap { word } => write!(
                f,
                "the image's RELR table has bitmap {word:#x} without an address before it"
            ),
            Self::NoIdent => write!(
                f,
                "the image does not say what it is: it has no note of owner Segue, type {}",
                Ident::NOTE_TYPE
            ),
            Self::IdentTwice => write!(f, "the image says twice what it is"),
            Self::IdentLength { len } => write!(
                f,
                "the image's identity note has {len} bytes instead of {}",
                Ident::DESC_LEN
            ),
            Self::IdentFlags { flags } => {
                write!(f, "the image's identity note has unknown flags: {flags:#x}")
            }
            Self::IdentAbi { min, max } => {
                write!(f, "the image's handover ABI range {min}..{max} is empty")
            }
            Self::IdentName(field) => write!(
                f,
                "the image's name \"{}\" is not 1 to {LABEL_LEN} of a-z, 0-9 and -",
                trimmed(field).escape_ascii()
            ),
            Self::IdentVersion(field) => write!(
                f,
                "the image's version \"{}\" is not 1 to {LABEL_LEN} visible ASCII characters",
                trimmed(field).escape_ascii()
            ),
        }
    }
}

impl core::error::Error for ImageError {}
