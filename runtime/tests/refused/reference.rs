#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: &'static u8,
}

fn main() {}
