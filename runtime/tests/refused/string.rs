#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: String,
}

fn main() {}
