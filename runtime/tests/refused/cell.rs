#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: std::cell::Cell<u8>,
}

fn main() {}
