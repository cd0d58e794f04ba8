#[derive(segue::Plain)]
#[repr(C, packed(2))]
struct Row {
    key: u64,
    small: u16,
}

fn main() {}
