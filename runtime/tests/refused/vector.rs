#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: Vec<u8>,
}

fn main() {}
