//! What loaders leave: Linux boot parameters and PVH start info, and the command line in them.
//!
//! The input is memory from [`BASE`] on, its first byte apart, which says what is there.

use crate::Target;
use segue_kernel::boot::cmdline::{self, CommandLine};
use segue_kernel::boot::info::{BootInfo, Read};
use segue_kernel::net::config::Config;
use std::cell::Cell;

pub const TARGET: Target = Target {
    name: "boot",
    what: "Linux and PVH boot data, the command line",
    longest: 4097,
    memory: 32 << 10,
    seeds,
    run,
};

/// Where memory begins that can be read.
const BASE: u64 = 0x1000;
/// Reads for one set of boot data: 1,024 map entries of three, any number of modules is not read.
const MOST_READS: usize = 20_000;

/// Memory that can be read, and how often it was.
pub struct Memory<'a> {
    pub base: u64,
    pub bytes: &'a [u8],
    pub reads: Cell<usize>,
}

impl Read for Memory<'_> {
    fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        self.reads.set(self.reads.get() + 1);
        let start = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        let bytes = self.bytes.get(start..start.checked_add(N)?)?;
        bytes.try_into().ok()
    }
}

fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    let memory = Memory {
        base: BASE,
        bytes,
        reads: Cell::new(0),
    };
    let info = match kind % 3 {
        0 => BootInfo::from_linux(&memory, BASE),
        1 => BootInfo::from_pvh(&memory, BASE),
        _ => return command_line(&CommandLine::from_bytes(bytes)),
    };
    let reads = memory.reads.get();
    assert!(reads < MOST_READS, "{reads} reads");
    let Ok(info) = info else { return };
    assert!(info.ram.frames() > 0);
    for set in [&info.ram, &info.claimed] {
        let parts: Vec<_> = set.iter().collect();
        for pair in parts.windows(2) {
            assert!(
                pair[0].end() < pair[1].start().as_u64(),
                "extents are sorted and apart"
            );
        }
    }
    for part in info.ram.iter() {
        assert!(info.claimed.contains(part), "RAM is claimed");
    }
    for module in &info.modules {
        assert!(module.extent().is_some_and(|e| e.frames() > 0));
    }
    command_line(&info.cmdline);
}

fn command_line(line: &CommandLine) {
    assert!(line.as_str().len() <= cmdline::MAX);
    let mut bad = 0;
    let config = Config::read(line, |value| {
        bad += value.to_string().len();
    });
    for address in &config.addresses {
        let most = if address.value.addr.is_ipv4() {
            32
        } else {
            128
        };
        assert!(address.value.len <= most);
    }
    for entry in line.environment() {
        assert!(entry.find('=').is_some_and(|at| at > 0));
    }
    let args: Vec<&str> = line.args().collect();
    // Its own arguments fit, as it is no longer than it was but for one `--`.
    if let Some(again) = line.with_args(args.iter().copied()) {
        assert!(again.args().eq(args.iter().copied()));
        assert_eq!(again.option("log"), line.option("log"));
    } else {
        assert!(line.as_str().len() + 3 > cmdline::MAX);
    }
}

fn put(memory: &mut [u8], at: usize, bytes: &[u8]) {
    memory[at..at + bytes.len()].copy_from_slice(bytes);
}

fn seeds() -> Vec<Vec<u8>> {
    const LINE: &[u8] = b"console=hvc0 segue.ip=10.0.0.2/24,fd00::2/64%1 segue.gateway=10.0.0.1%0 \
        segue.dns=10.0.0.1,fd00::53 segue.log=debug segue.env.HOME=/ segue.env.=x -- a --b c\0";
    let e820 = [
        (0u64, 0x9fc00u64, 1u32),
        (0x9fc00, 0x400, 2),
        (0xf0000, 0x10000, 2),
        (0x10_0000, 0x3f0_0000, 1),
        (0x20_0000, 0x1000, 2),
    ];
    let mut linux = vec![0; 4097];
    let m = &mut linux[1..];
    put(m, 0x202, b"HdrS");
    m[0x1e8] = e820.len() as u8;
    for (n, (addr, len, kind)) in e820.into_iter().enumerate() {
        let at = 0x2d0 + n * 20;
        put(m, at, &addr.to_le_bytes());
        put(m, at + 8, &len.to_le_bytes());
        put(m, at + 16, &kind.to_le_bytes());
    }
    put(m, 0x218, &0x300_0000u32.to_le_bytes());
    put(m, 0x21c, &0x1234u32.to_le_bytes());
    put(m, 0x228, &(BASE as u32 + 0x400).to_le_bytes());
    put(m, 0x400, LINE);

    let mut pvh = vec![0; 0x401];
    pvh[0] = 1;
    let m = &mut pvh[1..];
    put(m, 0, &0x336e_c578u32.to_le_bytes());
    put(m, 4, &1u32.to_le_bytes());
    put(m, 12, &2u32.to_le_bytes());
    put(m, 16, &(BASE + 0x40).to_le_bytes());
    put(m, 24, &(BASE + 0x200).to_le_bytes());
    put(m, 32, &0xfc00_0000u64.to_le_bytes());
    put(m, 40, &(BASE + 0x100).to_le_bytes());
    put(m, 48, &(e820.len() as u32).to_le_bytes());
    for n in 0..2 {
        put(
            m,
            0x40 + n * 32,
            &(0x50_0000 + n as u64 * 0x1000).to_le_bytes(),
        );
        put(m, 0x48 + n * 32, &77u64.to_le_bytes());
    }
    for (n, (addr, len, kind)) in e820.into_iter().enumerate() {
        let at = 0x100 + n * 24;
        put(m, at, &addr.to_le_bytes());
        put(m, at + 8, &len.to_le_bytes());
        put(m, at + 16, &kind.to_le_bytes());
    }
    put(m, 0x200, LINE);
    vec![linux, pvh, [&[2], LINE].concat()]
}
