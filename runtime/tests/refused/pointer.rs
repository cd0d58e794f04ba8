#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: *const u8,
}

fn main() {}
