#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: Option<u8>,
}

fn main() {}
