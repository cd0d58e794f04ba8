#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: std::collections::BTreeMap<u8, u8>,
}

fn main() {}
