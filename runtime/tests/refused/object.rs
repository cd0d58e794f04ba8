#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: Box<dyn Send>,
}

fn main() {}
