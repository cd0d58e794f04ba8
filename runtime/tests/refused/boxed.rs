#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: Box<u8>,
}

fn main() {}
