//! What one image tells the next: the record, the block of named values, a region's header.
//!
//! The first byte says which, and whether a right digest is put in: else nothing but that would
//! ever be tried.

use crate::Target;
use segue_kernel::replace::record::{Kind, Record, Writer};
use segue_kernel::replace::region::Header;
use segue_kernel::replace::values::{Block, MAX_BYTES, Values};

pub const TARGET: Target = Target {
    name: "record",
    what: "the handover record, named values, regions' headers",
    longest: 4097,
    memory: 32 << 10,
    seeds,
    run,
};

/// Length, then digest of a record; digest of a region's header.
const RECORD: usize = 24;
const HEADER: usize = 120;

fn run(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    let right = what & 4 != 0;
    match what & 3 {
        0 | 1 => {
            if right && bytes.len() >= RECORD {
                // All of it entries; of values, their places are behind them and in them.
                let entries = bytes.split_off(RECORD);
                bytes.resize(RECORD + entries.len(), 0);
                let written = Writer::new(&mut bytes).raw(&entries);
                written.expect("as long as before");
            }
            if what & 1 == 0 {
                record(&bytes);
            } else {
                values(&bytes);
            }
        }
        _ => {
            if right && bytes.len() >= HEADER {
                let digest = Header::digest_of(&bytes).to_le_bytes();
                bytes[HEADER - 8..HEADER].copy_from_slice(&digest);
            }
            header(&bytes);
        }
    }
}

fn record(bytes: &[u8]) {
    let Ok(record) = Record::parse(bytes) else {
        return;
    };
    assert_eq!(Record::len_of(bytes), Ok(record.len()));
    assert!(record.len() <= bytes.len());
    let mut sum = 0;
    for kind in [
        Kind::Ram,
        Kind::Kept,
        Kind::Regions,
        Kind::Values,
        Kind::CommandLine,
    ] {
        let all: usize = record.all(kind).map(<[u8]>::len).sum();
        let first = record.bytes(kind).map_or(0, <[u8]>::len);
        assert!(first <= all);
        sum += all;
        let words = record.words(kind).map_or(0, Iterator::count);
        assert!(words <= first / 8);
        let _ = record.array::<3>(kind);
    }
    assert!(sum <= record.len());
}

fn values(bytes: &[u8]) {
    let Ok(block) = Block::parse(bytes) else {
        return;
    };
    let mut again = Values::default();
    again.set_schema(block.schema());
    for name in block.names() {
        let Ok(value) = block.get(name) else { continue };
        let within = bytes.as_ptr_range();
        let range = value.as_ptr_range();
        assert!(within.start <= range.start && range.end <= within.end);
        // A name may be there twice, or be none that an image would write.
        let _ = again.put(name, value.to_vec());
    }
    let mut block = vec![0; again.len().min(MAX_BYTES)];
    again.write(&mut block).expect("as long as it says");
    let read = Block::parse(&block).expect("what was written");
    assert!(read.names().all(|name| read.get(name).is_ok()));
}

fn header(bytes: &[u8]) {
    let room = bytes.len() as u64;
    let Ok(header) = Header::parse(bytes, room) else {
        return;
    };
    assert!(header.size > 0 && header.size * header.count <= room);
    assert_eq!(Header::parse(&header.to_bytes(), room), Ok(header));
}

fn seeds() -> Vec<Vec<u8>> {
    let mut record = vec![0; 600];
    let mut w = Writer::new(&mut record);
    let words = |w: &mut Writer<'_>, kind, words: &[u64]| {
        w.words(kind, words.iter().copied()).expect("room");
    };
    words(&mut w, Kind::Generation, &[2]);
    words(&mut w, Kind::Ram, &[0, 0x9f, 0x100, 0x4000]);
    words(&mut w, Kind::Regions, &[0x1000, 0x1801, 0x2000, 0x2002]);
    words(&mut w, Kind::Values, &[0x3000, 0x3001, 200]);
    w.bytes(Kind::CommandLine, b"segue.log=debug -- --every 20")
        .expect("room");
    w.finish().expect("room");

    let mut values = Values::default();
    values.set_schema(3);
    for (name, value) in [
        ("count", &[0xce, 0, 1, 2, 3][..]),
        ("text", b"\xa4abcd"),
        ("empty", b""),
    ] {
        values.put(name, value.to_vec()).expect("room");
    }
    let mut block = vec![0; values.len()];
    values.write(&mut block).expect("room");

    let header = Header {
        layout: 0x6ba6_b37b_6dd7_f9c6,
        version: 1,
        size: 16,
        count: 4,
        name: "table".try_into().expect("short"),
        consistent: true,
    };
    let header = header.to_bytes();
    [
        (0, &record[..]),
        (4, &record),
        (1, &block),
        (5, &block),
        (2, &header),
        (6, &header),
    ]
    .into_iter()
    .map(|(what, bytes)| [&[what], bytes].concat())
    .collect()
}
