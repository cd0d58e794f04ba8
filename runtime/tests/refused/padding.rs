#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    small: u8,
}

fn main() {}
