//! ACPI's tables, from the RSDP to the MADT's entries. The input is the BIOS area.

use super::boot::Memory;
use crate::Target;
use segue_kernel::acpi;
use std::cell::Cell;

pub const TARGET: Target = Target {
    name: "madt",
    what: "ACPI's RSDP, root tables and MADT",
    longest: 1024,
    memory: 4 << 10,
    seeds,
    run,
};

const BASE: u64 = 0xe_0000;
/// Places where an RSDP may be, then 256 tables and 1,024 entries of three reads at most each.
const MOST_READS: usize = 0x2000 + 3 * 256 + 3 * 1024 + 16;

fn run(input: &[u8]) {
    let memory = Memory {
        base: BASE,
        bytes: input,
        reads: Cell::new(0),
    };
    // Where the loader says it is, its checksum is not looked at.
    let found = acpi::scan_bios_area(&memory);
    for rsdp in [found, Some(BASE)] {
        let ids = acpi::apic_ids::<33>(&memory, rsdp);
        assert!(ids.len() <= 33);
        // An entry takes eight bytes: none is made of nothing.
        assert!(ids.len() * 8 <= input.len());
    }
    let reads = memory.reads.get();
    assert!(reads <= 2 * MOST_READS, "{reads} reads");
}

fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

fn seeds() -> Vec<Vec<u8>> {
    let entries: &[u8] = &[
        1, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, // I/O APIC
        0, 8, 0, 0, 1, 0, 0, 0, // local APIC 0
        0, 8, 1, 2, 1, 0, 0, 0, // local APIC 2
        0x80, 4, 0, 0, // an OEM's
        9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, // x2APIC 300
    ];
    let make = |revision: u8| {
        let mut m = vec![0; 0x140];
        let addr = |at: usize| BASE + at as u64;
        put(&mut m, 0, b"RSD PTR ");
        m[15] = revision;
        put(&mut m, 16, &(addr(0x40) as u32).to_le_bytes());
        put(&mut m, 24, &addr(0x40).to_le_bytes());
        m[8] = m[..20].iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
        let (signature, width) = if revision == 0 {
            (b"RSDT", 4)
        } else {
            (b"XSDT", 8)
        };
        put(&mut m, 0x40, signature);
        put(&mut m, 0x44, &(36 + 2 * width as u32).to_le_bytes());
        for (n, table) in [addr(0x80), addr(0xc0)].into_iter().enumerate() {
            put(&mut m, 0x40 + 36 + n * width, &table.to_le_bytes()[..width]);
        }
        put(&mut m, 0x80, b"FACP");
        put(&mut m, 0xc0, b"APIC");
        put(&mut m, 0xc4, &(44 + entries.len() as u32).to_le_bytes());
        put(&mut m, 0xc0 + 44, entries);
        m
    };
    vec![make(0), make(2)]
}
