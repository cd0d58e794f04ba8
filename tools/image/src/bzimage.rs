//! The Linux bzImage: boot sector and real-mode setup code, then the image as it stands in memory.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst. The kernel brings the setup code, header
//! included; what depends on the image's size is filled in here.

use elf::ElfBytes;
use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use segue_kernel::image::{Image, PAGE_SIZE};

use crate::Error;

/// Bytes in a sector.
pub const SECTOR: usize = 512;
/// Most sectors of setup code: boot loaders give it 32 KiB.
pub const MAX_SECTORS: usize = 64;
/// End of the last field of the header that is filled in.
pub const HEADER_END: usize = INIT_SIZE + 4;

const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// `syssize` counts units of 16 bytes.
const PARAGRAPH: usize = 16;
/// Where the image wants to be: the lowest address where large RAM begins.
const PREFERRED: u64 = 0x10_0000;

/// Section `.setup` of the linked image.
pub fn setup_code(linked: &[u8]) -> Result<&[u8], Error> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(linked)?;
    let header = file
        .section_headers()
        .and(file.section_header_by_name(".setup")?);
    let (setup, _) = file.section_data(&header.ok_or(Error::NoSetup)?)?;
    let is = |at: usize, bytes: &[u8]| setup.get(at..).is_some_and(|s| s.starts_with(bytes));
    let good = is(BOOT_FLAG, &[0x55, 0xaa])
        && is(MAGIC, b"HdrS")
        && (HEADER_END..=MAX_SECTORS * SECTOR).contains(&setup.len());
    if !good {
        return Err(Error::BadSetup { len: setup.len() });
    }
    Ok(setup)
}

/// Makes the bzImage from setup code and a stripped ELF file, which holds `image`.
pub fn bzimage(setup: &[u8], elf: &[u8], image: &Image<'_>) -> Result<Vec<u8>, Error> {
    let flat = flat(elf, image.link_base())?;
    let mut out = setup.to_vec();
    out.resize(setup.len().next_multiple_of(SECTOR), 0);

    // The boot sector does not count; `setup_code` saw that there are 2 to 64 sectors.
    let setup_sects = (out.len() / SECTOR - 1) as u8;
    // An image is at most 1 GiB long: both fit.
    let syssize = (flat.len() / PARAGRAPH) as u32;
    let init_size = image.span().next_multiple_of(PAGE_SIZE) as u32;
    let mut put = |at: usize, field: &[u8]| out[at..at + field.len()].copy_from_slice(field);
    put(SETUP_SECTS, &[setup_sects]);
    put(SYSSIZE, &syssize.to_le_bytes());
    put(PREF_ADDRESS, &PREFERRED.to_le_bytes());
    put(INIT_SIZE, &init_size.to_le_bytes());

    out.extend(flat);
    Ok(out)
}

/// The image as it stands in memory, up to where the file's data ends: what follows is zero, and
/// the image zeroes it itself.
fn flat(elf: &[u8], link_base: u64) -> Result<Vec<u8>, Error> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(elf)?;
    let mut flat = Vec::new();
    for load in file.segments().into_iter().flatten() {
        if load.p_type == PT_LOAD && load.p_filesz != 0 {
            // They ascend from the link base: the image was checked.
            flat.resize((load.p_vaddr - link_base) as usize, 0);
            flat.extend_from_slice(file.segment_data(&load)?);
        }
    }
    flat.resize(flat.len().next_multiple_of(PARAGRAPH), 0);
    Ok(flat)
}
