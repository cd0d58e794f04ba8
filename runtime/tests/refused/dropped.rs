#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
}

impl Drop for Row {
    fn drop(&mut self) {}
}

fn main() {}
