#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: char,
}

fn main() {}
