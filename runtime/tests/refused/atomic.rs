#[derive(segue::Plain)]
#[repr(C)]
struct Row {
    key: u64,
    field: std::sync::atomic::AtomicU64,
}

fn main() {}
