//! ACPI tables at first boot: where they are and which local APICs the vCPUs have (ACPI 6.5
//! §5.2.5 to §5.2.8, §5.2.12). No AML is run. A later image gets the APIC ids from the record.
//!
//! Ours rather than crate `acpi`'s: that one reads wherever a table points, underflows on a table
//! shorter than its own header, goes round for ever in an entry of length 0, and needs unstable
//! features, so no test could run it. Here every read may fail, and the work is bounded.

use crate::boot::info::Read;
use arrayvec::ArrayVec;

/// Bytes of an ACPI 1.0 RSDP, over which its checksum goes.
const RSDP_LEN: usize = 20;
/// Bytes of a table's header.
const HEADER: u64 = 36;
/// Where the MADT's entries begin.
const MADT_ENTRIES: u64 = 44;
/// Most tables that are looked at.
const MAX_TABLES: usize = 256;
/// Most entries of the MADT that are looked at.
const MAX_ENTRIES: usize = 1024;
/// Entry types: processor local APIC, processor local x2APIC.
const LOCAL_APIC: u8 = 0;
const LOCAL_X2APIC: u8 = 9;
/// Bit of an entry's flags.
const ENABLED: u32 = 1;

/// Looks for the RSDP where a BIOS puts it (ACPI 6.5 §5.2.5.1): on 16-byte boundaries in
/// 0xE0000..0x100000, the ACPI 1.0 part, bytes adding up to 0.
pub fn scan_bios_area(memory: &impl Read) -> Option<u64> {
    (0xe_0000..0x10_0000)
        .step_by(16)
        .find(|addr| is_rsdp(memory, *addr))
}

fn is_rsdp(memory: &impl Read, addr: u64) -> bool {
    memory.bytes::<RSDP_LEN>(addr).is_some_and(|bytes| {
        bytes.starts_with(b"RSD PTR ") && bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
    })
}

/// The ids of all enabled local APICs, in the order of the MADT, which is that of the vCPUs; the
/// first `N`. None where there is no MADT, those before it where one is damaged.
pub fn apic_ids<const N: usize>(memory: &impl Read, rsdp: Option<u64>) -> ArrayVec<u32, N> {
    let mut ids = ArrayVec::new();
    if let Some(madt) = rsdp.and_then(|rsdp| find_madt(memory, rsdp)) {
        // It ends where something can't be read.
        let _ = read_madt(memory, madt, &mut ids);
    }
    ids
}

/// A table's length, if it is one with this signature.
fn table(memory: &impl Read, addr: u64, signature: &[u8; 4]) -> Option<u64> {
    let found = memory.bytes::<4>(addr)?;
    let len = memory.u32(addr.checked_add(4)?).ok()?;
    (found == *signature).then_some(u64::from(len))
}

fn find_madt(memory: &impl Read, rsdp: u64) -> Option<u64> {
    if memory.bytes::<8>(rsdp)? != *b"RSD PTR " {
        return None;
    }
    let [revision] = memory.bytes::<1>(rsdp.checked_add(15)?)?;
    let (root, signature, width) = if revision == 0 {
        let rsdt = memory.u32(rsdp.checked_add(16)?).ok()?;
        (u64::from(rsdt), b"RSDT", 4)
    } else {
        (memory.u64(rsdp.checked_add(24)?).ok()?, b"XSDT", 8)
    };
    let end = root.checked_add(table(memory, root, signature)?)?;
    let mut at = root.checked_add(HEADER)?;
    for _ in 0..MAX_TABLES {
        if at.checked_add(width)? > end {
            break;
        }
        let found = match width {
            4 => u64::from(memory.u32(at).ok()?),
            _ => memory.u64(at).ok()?,
        };
        if table(memory, found, b"APIC").is_some() {
            return Some(found);
        }
        at += width;
    }
    None
}

fn read_madt<const N: usize>(
    memory: &impl Read,
    madt: u64,
    ids: &mut ArrayVec<u32, N>,
) -> Option<()> {
    let end = madt.checked_add(table(memory, madt, b"APIC")?)?;
    let mut at = madt.checked_add(MADT_ENTRIES)?;
    for _ in 0..MAX_ENTRIES {
        let [kind, len] = memory.bytes::<2>(at)?;
        let next = at.checked_add(len.into())?;
        if len < 2 || next > end {
            break;
        }
        let (id, flags) = match (kind, len) {
            (LOCAL_APIC, 8..) => {
                let [id, a, b, c, d] = memory.bytes::<5>(at.checked_add(3)?)?;
                (u32::from(id), u32::from_le_bytes([a, b, c, d]))
            }
            (LOCAL_X2APIC, 16..) => (
                memory.u32(at.checked_add(4)?).ok()?,
                memory.u32(at.checked_add(8)?).ok()?,
            ),
            _ => (0, 0),
        };
        if flags & ENABLED != 0 {
            ids.try_push(id).ok()?;
        }
        at = next;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Memory from [`Fake::BASE`] on; what lies before and behind can't be read.
    struct Fake(Vec<u8>);

    impl Fake {
        const BASE: u64 = 0xe_0000;
    }

    impl Read for Fake {
        fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
            let start = usize::try_from(addr.checked_sub(Self::BASE)?).ok()?;
            self.0.get(start..start.checked_add(N)?)?.try_into().ok()
        }
    }

    const ROOT: usize = 0x100;
    const MADT: usize = 0x200;

    fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Tables as hvmloader and libxl lay them out: RSDP, root table of two tables, MADT.
    fn tables(revision: u8, entries: &[&[u8]]) -> Vec<u8> {
        let mut m = vec![0; 0x400];
        let addr = |at: usize| Fake::BASE + at as u64;
        put(&mut m, 0x20, b"RSD PTR ");
        m[0x20 + 15] = revision;
        put(&mut m, 0x20 + 16, &(addr(ROOT) as u32).to_le_bytes());
        put(&mut m, 0x20 + 24, &addr(ROOT).to_le_bytes());
        m[0x20 + 8] = m[0x20..0x34].iter().fold(0u8, |s, b| s.wrapping_sub(*b));
        let (signature, width) = if revision == 0 {
            (b"RSDT", 4)
        } else {
            (b"XSDT", 8)
        };
        put(&mut m, ROOT, signature);
        put(&mut m, ROOT + 4, &(36 + 2 * width as u32).to_le_bytes());
        for (n, table) in [addr(0x180), addr(MADT)].into_iter().enumerate() {
            put(&mut m, ROOT + 36 + n * width, &table.to_le_bytes()[..width]);
        }
        put(&mut m, 0x180, b"FACP");
        let entries = entries.concat();
        put(&mut m, MADT, b"APIC");
        put(&mut m, MADT + 4, &(44 + entries.len() as u32).to_le_bytes());
        put(&mut m, MADT + 44, &entries);
        m
    }

    fn ids(memory: Vec<u8>) -> Vec<u32> {
        let memory = Fake(memory);
        let rsdp = scan_bios_area(&memory);
        apic_ids::<4>(&memory, rsdp).to_vec()
    }

    const IO_APIC: &[u8] = &[1, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const FIRST: &[u8] = &[0, 8, 0, 0, 1, 0, 0, 0];
    const SECOND: &[u8] = &[0, 8, 1, 2, 1, 0, 0, 0];
    const OFF: &[u8] = &[0, 8, 2, 4, 0, 0, 0, 0];
    const X2: &[u8] = &[9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];

    #[test]
    fn enabled_apics_are_found() {
        for revision in [0, 2] {
            assert_eq!(
                ids(tables(revision, &[IO_APIC, FIRST, SECOND, OFF, X2])),
                [0, 2, 0x12c]
            );
        }
        assert_eq!(
            ids(tables(2, &[SECOND; 6])),
            [2; 4],
            "as many as there is room for"
        );
        assert_eq!(ids(vec![0; 0x400]), []);
    }

    #[test]
    fn damaged_tables_end() {
        // An entry of length 0 or 1, and one longer than the table.
        for bad in [0u8, 1, 200] {
            assert_eq!(ids(tables(2, &[FIRST, &[0x80, bad], SECOND])), [0]);
        }
        // An entry shorter than its type's.
        assert_eq!(ids(tables(2, &[&[0, 4, 9, 9], SECOND])), [2]);
        for (at, len) in [(ROOT, 0u32), (ROOT, 35), (MADT, 0), (MADT, 43)] {
            let mut m = tables(2, &[FIRST]);
            put(&mut m, at + 4, &len.to_le_bytes());
            assert_eq!(ids(m), [], "a table of {len} bytes");
        }
        for (at, len) in [(ROOT, u32::MAX), (MADT, u32::MAX)] {
            let mut m = tables(2, &[FIRST, SECOND]);
            put(&mut m, at + 4, &len.to_le_bytes());
            assert_eq!(ids(m)[..2], [0, 2]);
        }
        // A root table that isn't anywhere.
        let mut m = tables(2, &[FIRST]);
        put(&mut m, 0x20 + 24, &u64::MAX.to_le_bytes());
        assert_eq!(ids(m), []);
    }

    proptest! {
        #[test]
        fn damage_is_survived(
            hits in proptest::collection::vec((0x30usize..0x280, any::<u8>()), 0..20),
            revision in 0u8..3,
        ) {
            let mut m = tables(revision, &[IO_APIC, FIRST, SECOND, X2]);
            for (at, byte) in hits { m[at] = byte; }
            prop_assert!(apic_ids::<4>(&Fake(m), Some(Fake::BASE + 0x20)).len() <= 4);
        }
    }
}
