//! The stripped ELF file: ELF header, program headers and the bytes they name.
//!
//! Xen's libelf finds the PVH entry in a note by PT_NOTE, and loads by physical address (p_paddr):
//! notes stay where PT_NOTE says, and physical addresses are the virtual ones.

use std::ops::Range;

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;

use crate::Error;

const FILE_HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
/// Segments begin at multiples of it in the file too: they can be mapped as they are.
const PAGE: usize = 4096;

/// Makes the stripped copy of a linked file.
pub fn strip(linked: &[u8]) -> Result<Vec<u8>, Error> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(linked)?;
    let old: Vec<ProgramHeader> = file.segments().into_iter().flatten().collect();
    let used = |header: &&ProgramHeader| match header.p_type {
        abi::PT_LOAD | abi::PT_TLS => header.p_memsz != 0,
        abi::PT_DYNAMIC | abi::PT_NOTE | abi::PT_GNU_RELRO => header.p_filesz != 0,
        // PT_INTERP is kept so that the image is refused for its true reason.
        abi::PT_GNU_STACK | abi::PT_INTERP => true,
        // The rest is for tools, or names what is not loaded (PT_PHDR).
        _ => false,
    };
    let (loads, others): (Vec<_>, Vec<_>) = old
        .iter()
        .filter(used)
        .copied()
        .partition(|header| header.p_type == abi::PT_LOAD);

    let count = loads.len() + others.len();
    let headers_len = usize::from(FILE_HEADER_LEN) + count * usize::from(PROGRAM_HEADER_LEN);
    let mut out = vec![0; headers_len];

    let mut new = Vec::new();
    for load in &loads {
        let bytes = segment_bytes(linked, load)?;
        if !bytes.is_empty() {
            out.resize(out.len().next_multiple_of(PAGE), 0);
        }
        new.push(ProgramHeader {
            p_offset: out.len() as u64,
            p_paddr: load.p_vaddr,
            p_align: PAGE as u64,
            ..*load
        });
        out.extend_from_slice(bytes);
    }
    // An empty segment's offset must be congruent to its address as well.
    for load in new.iter_mut().filter(|load| load.p_filesz == 0) {
        load.p_offset = 0;
    }
    for other in &others {
        let p_offset = match other.p_filesz {
            0 => 0,
            _ => new_offset(&new, other).ok_or(Error::NotLoaded {
                kind: other.p_type,
                address: other.p_vaddr,
            })?,
        };
        new.push(ProgramHeader {
            p_offset,
            p_paddr: other.p_vaddr,
            ..*other
        });
    }

    let mut headers = file_header(
        file.ehdr.e_type,
        file.ehdr.e_machine,
        file.ehdr.e_entry,
        count,
    );
    for header in &new {
        headers.extend(header.p_type.to_le_bytes());
        headers.extend(header.p_flags.to_le_bytes());
        for field in [
            header.p_offset,
            header.p_vaddr,
            header.p_paddr,
            header.p_filesz,
            header.p_memsz,
            header.p_align,
        ] {
            headers.extend(field.to_le_bytes());
        }
    }
    out[..headers_len].copy_from_slice(&headers);
    Ok(out)
}

/// Where section `.segue.origin` of the linked file is in the stripped one; `None` if it has none.
pub fn origin(linked: &[u8], stripped: &[u8]) -> Result<Option<Range<usize>>, Error> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(linked)?;
    let found = file.section_header_by_name(".segue.origin")?;
    let Some(section) = file.section_headers().and(found) else {
        return Ok(None);
    };
    let (address, len) = (section.sh_addr, section.sh_size);
    let segments = ElfBytes::<LittleEndian>::minimal_parse(stripped)?.segments();
    let loads = segments.into_iter().flatten();
    let start = loads
        .filter(|load| load.p_type == abi::PT_LOAD)
        .find_map(|load| place(&load, address, len));
    let start = start.ok_or(Error::NotLoaded {
        kind: abi::PT_LOAD,
        address,
    })?;
    // Inside of a file that is in memory.
    Ok(Some(start as usize..(start + len) as usize))
}

/// What the file holds of a segment.
fn segment_bytes<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<&'a [u8], Error> {
    let end = header.p_offset.checked_add(header.p_filesz);
    let range = end.and_then(|end| {
        let start = usize::try_from(header.p_offset).ok()?;
        file.get(start..usize::try_from(end).ok()?)
    });
    range.ok_or(Error::Segment {
        offset: header.p_offset,
        len: header.p_filesz,
    })
}

/// Where what `other` names is now, by its address.
fn new_offset(loads: &[ProgramHeader], other: &ProgramHeader) -> Option<u64> {
    let place = |load| place(load, other.p_vaddr, other.p_filesz);
    loads.iter().find_map(place)
}

/// Where in the file an address is, if all of it is in this segment.
fn place(load: &ProgramHeader, address: u64, len: u64) -> Option<u64> {
    let offset = address.checked_sub(load.p_vaddr)?;
    let end = offset.checked_add(len)?;
    (end <= load.p_filesz).then_some(load.p_offset + offset)
}

fn file_header(kind: u16, machine: u16, entry: u64, count: usize) -> Vec<u8> {
    let mut header = vec![0; abi::EI_NIDENT];
    header[..4].copy_from_slice(&abi::ELFMAGIC);
    header[abi::EI_CLASS] = abi::ELFCLASS64;
    header[abi::EI_DATA] = abi::ELFDATA2LSB;
    header[abi::EI_VERSION] = abi::EV_CURRENT;
    header.extend(kind.to_le_bytes());
    header.extend(machine.to_le_bytes());
    header.extend(u32::from(abi::EV_CURRENT).to_le_bytes());
    let (program_headers, sections) = (u64::from(FILE_HEADER_LEN), 0_u64);
    for field in [entry, program_headers, sections] {
        header.extend(field.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    // Of sections, only the size of their headers is said.
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    for field in [FILE_HEADER_LEN, PROGRAM_HEADER_LEN, count, 64, 0, 0] {
        header.extend(field.to_le_bytes());
    }
    header
}
