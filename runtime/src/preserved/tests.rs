use super::*;
use crate::Plain;
use crate::handover::handover;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[repr(C)]
struct Row {
    key: u64,
    hits: u32,
    kind: [u8; 4],
}

/// Half as large, and as large again as that.
#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[repr(C)]
struct Small {
    key: u32,
    hits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Plain)]
#[repr(C)]
struct Large {
    key: [u64; 3],
    hits: u64,
    next: Offset<Large>,
}

mod elsewhere {
    /// As [`super::Row`], by another name and in another place.
    #[derive(segue::Plain)]
    #[repr(C, align(8))]
    pub struct Line {
        pub key: u64,
        pub hits: u32,
        pub kind: [u8; 4],
    }

    #[derive(segue::Plain)]
    #[repr(C)]
    pub struct Renamed {
        pub key: u64,
        pub hit: u32,
        pub kind: [u8; 4],
    }

    #[derive(segue::Plain)]
    #[repr(C)]
    pub struct Reordered {
        pub key: u64,
        pub kind: [u8; 4],
        pub hits: u32,
    }

    #[derive(segue::Plain)]
    #[repr(C)]
    pub struct Retyped {
        pub key: u64,
        pub hits: i32,
        pub kind: [u8; 4],
    }

    #[derive(segue::Plain)]
    #[repr(C)]
    pub struct Nested {
        pub key: u64,
        pub hits: u32,
        pub kind: [[u8; 2]; 2],
    }

    #[derive(segue::Plain)]
    #[repr(transparent)]
    pub struct Wrapped(pub super::Row);
}

#[test]
fn the_hash_is_the_layouts() {
    use elsewhere::*;
    assert_eq!(Row::LAYOUT, Line::LAYOUT);
    let all = [
        Row::LAYOUT,
        Renamed::LAYOUT,
        Reordered::LAYOUT,
        Retyped::LAYOUT,
        Nested::LAYOUT,
        Wrapped::LAYOUT,
        Small::LAYOUT,
        Large::LAYOUT,
        <[Row; 1]>::LAYOUT,
        <[Row; 2]>::LAYOUT,
        <[Row] as Shape>::SHAPE,
        u64::LAYOUT,
        i64::LAYOUT,
        f64::LAYOUT,
    ];
    for (n, a) in all.iter().enumerate() {
        assert!(all[n + 1..].iter().all(|b| a != b), "{n}");
    }
    // Part of what images tell each other: it stays what it is.
    assert_eq!(u64::LAYOUT, 0x25d9_2efa_998a_8e2b);
    assert_eq!(Row::LAYOUT, 0x6ba6_b37b_6dd7_f9c6);
}

#[test]
fn a_region_is_handed_over_where_it_is() {
    let mut region = Region::<[Row]>::create("rows", 3, 1000).unwrap();
    assert!(region.get().iter().all(|r| r.key == 0));
    region
        .update(|rows| {
            for (n, row) in rows.iter_mut().enumerate() {
                row.key = n as u64 * 7;
            }
        })
        .unwrap();
    let at = region.get().as_ptr();
    play::region(region);
    play::trial();
    let mut region = Region::<[Row]>::take("rows", 3).unwrap();
    assert_eq!((region.get().as_ptr(), region.get().len()), (at, 1000));
    assert_eq!(region.get_mut().err(), Some(OnTrial));
    assert_eq!(region.edit().err(), Some(OnTrial));
    assert_eq!(region.update(|_| unreachable!()), Err(OnTrial));
    let Err((region, why)) = region.migrate(4, |row: Row| row.key) else {
        panic!("migrated on trial");
    };
    assert_eq!(why, MigrateError::OnTrial);
    let created = Region::<u64>::create_one("other", 1);
    assert_eq!(created.err(), Some(CreateError::OnTrial));
    // Dropped on trial it is there still, until the commit.
    drop(region);
    let mut region = Region::<[Row]>::take("rows", 3).unwrap();
    play::commit();
    region.get_mut().unwrap()[9].hits = 1;
    assert_eq!(region.get()[9].key, 63);
}

#[test]
fn what_does_not_fit_is_refused_and_stays() {
    play::region(Region::<[Row]>::create("rows", 1, 10).unwrap());
    let found = Kind {
        layout: <[Row] as Shape>::SHAPE,
        version: 1,
    };
    let other = |layout, version| {
        Some(TakeError::Other {
            found,
            wanted: Kind { layout, version },
        })
    };
    assert_eq!(
        Region::<[Row]>::take("lines", 1).err(),
        Some(TakeError::Missing)
    );
    assert_eq!(
        Region::<[Row]>::take("rows", 2).err(),
        other(found.layout, 2)
    );
    assert_eq!(Region::<Row>::take("rows", 1).err(), other(Row::LAYOUT, 1));
    assert_eq!(
        Region::<[Small]>::take("rows", 1).err(),
        other(<[Small] as Shape>::SHAPE, 1)
    );
    assert_eq!(
        Region::<u64>::create_one("rows", 1).err(),
        Some(CreateError::Exists)
    );
    let info = Info {
        name: "rows".into(),
        kind: found,
        bytes: 160,
        consistent: true,
    };
    assert_eq!(offered(), [info]);
    let region = Region::<[Row]>::take("rows", 1).unwrap();
    assert_eq!(
        Region::<[Row]>::take("rows", 1).err(),
        Some(TakeError::Missing)
    );
    drop(region);
    assert_eq!(
        Region::<u64>::create_one(&"n".repeat(65), 1).err(),
        Some(CreateError::Name)
    );
    assert_eq!(
        Region::<u64>::create_one("", 1).err(),
        Some(CreateError::Name)
    );
    let huge = Region::<[u64]>::create("rows", 1, usize::MAX / 8 - 1000);
    assert!(matches!(huge.err(), Some(CreateError::NoMemory { .. })));
}

#[test]
fn a_change_that_did_not_end_leaves_the_region_inconsistent() {
    let mut region = Region::<[u64]>::create("half", 1, 2).unwrap();
    let mut edit = region.edit().unwrap();
    edit[0] = 1;
    // Never dropped.
    std::mem::forget(edit);
    play::region(region);
    assert_eq!(
        Region::<[u64]>::take("half", 1).err(),
        Some(TakeError::NotConsistent)
    );
    play::commit();
    assert_eq!(
        Region::<[u64]>::take("half", 1).err(),
        Some(TakeError::Missing)
    );
    let mut region = Region::<[u64]>::create("whole", 1, 2).unwrap();
    region.edit().unwrap()[1] = 5;
    play::region(region);
    assert_eq!(Region::<[u64]>::take("whole", 1).unwrap().get(), [0, 5]);
}

#[test]
fn a_damaged_header_is_told() {
    let region = Region::<u64>::create_one("gone", 1).unwrap();
    // SAFETY: inside the header; nobody else has it.
    unsafe { *region.block.at.as_ptr().add(50) ^= 1 };
    play::region(region);
    assert_eq!(
        Region::<u64>::take("gone", 1).err(),
        Some(TakeError::Damaged(HeaderError::Digest))
    );
    assert_eq!(offered(), []);
    play::commit();
}

#[test]
fn dropping_what_came_frees_the_rest() {
    let mut out = crate::handover::Outgoing::default();
    out.put("n", &1).unwrap();
    play::values(&out);
    play::region(Region::<u64>::create_one("a", 1).unwrap());
    play::region(Region::<u64>::create_one("b", 1).unwrap());
    let come = handover().unwrap();
    assert_eq!(come.regions().len(), 2);
    let a = Region::<u64>::take("a", 1).unwrap();
    let names: Vec<String> = come.regions().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["b"]);
    drop(come);
    assert_eq!(Region::<u64>::take("b", 1).err(), Some(TakeError::Missing));
    assert_eq!(a.get(), &0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 100 }))]

    /// Elements keep what they say when they get smaller or larger, and back.
    #[test]
    fn migration_is_in_place(rows in vec(any::<(u32, u32)>(), 0..400)) {
        let mut region = Region::<[Large]>::create("m", 1, rows.len()).unwrap();
        region.update(|large| {
            for (to, &(key, hits)) in large.iter_mut().zip(&rows) {
                *to = Large { key: [key.into(); 3], hits: hits.into(), next: Offset::NONE };
            }
        }).unwrap();
        let at = region.get().as_ptr().addr();
        let region = region.migrate(2, |l| Small { key: l.key[1] as u32, hits: l.hits as u32 });
        let region = region.unwrap();
        prop_assert!(region.get().iter().map(|s| (s.key, s.hits)).eq(rows.iter().copied()));
        let region = region.migrate(3, |s| Row { key: s.key.into(), hits: s.hits, kind: *b"kind" });
        let region = region.unwrap();
        prop_assert!(region.get().iter().map(|r| (r.key as u32, r.hits)).eq(rows.iter().copied()));
        prop_assert!(region.get().iter().all(|r| r.kind == *b"kind"));
        prop_assert_eq!(region.get().as_ptr().addr(), at);
        play::region(region);
        prop_assert!(Region::<[Row]>::take("m", 2).is_err());
        let region = Region::<[Row]>::take("m", 3).unwrap();
        let larger = region.migrate(4, |r| [Large { key: [r.key; 3], hits: 0, next: Offset::NONE }; 2]);
        match larger {
            Ok(_) => prop_assert!(rows.is_empty()),
            Err((region, why)) => {
                prop_assert_eq!(why, MigrateError::TooLarge);
                prop_assert!(region.get().iter().map(|r| r.hits).eq(rows.iter().map(|r| r.1)));
            }
        }
    }

    /// Whatever the number, it resolves to elements that are inside and aligned, or to none.
    #[test]
    fn offsets_stay_inside(byte in prop_oneof![0u64..80, any::<u64>()], count in prop_oneof![0usize..9, any::<usize>()]) {
        let mut region = Region::<[u8]>::create("o", 1, 64).unwrap();
        let bytes = region.get_mut().unwrap();
        let Some(offset) = Offset::<u64>::at(byte) else {
            prop_assert_eq!(byte, u64::MAX);
            return Ok(());
        };
        prop_assert_eq!(offset.byte(), Some(byte));
        let fits = byte % 8 == 0 && (count as u128) * 8 + u128::from(byte) <= 64;
        let start = bytes.as_ptr().addr();
        let found = offset.slice(bytes, count).map(|s| (s.as_ptr().addr(), s.len()));
        prop_assert_eq!(found, fits.then(|| (start + byte as usize, count)));
        if let Some(slice) = offset.slice_mut(bytes, count) {
            slice.fill(u64::MAX);
        }
        let written = bytes.iter().filter(|b| **b == 0xff).count();
        prop_assert_eq!(written, if fits { 8 * count } else { 0 });
    }
}

#[test]
fn no_offset_is_no_place() {
    let zeroed = [0u64; 2];
    // SAFETY: any bytes are an Offset.
    let offset: Offset<u32> = unsafe { std::mem::transmute(zeroed[0]) };
    assert_eq!(offset, Offset::NONE);
    assert!(offset.is_none());
    assert_eq!(offset.resolve(&[0; 16]), None);
}
