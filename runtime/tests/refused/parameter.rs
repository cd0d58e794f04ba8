#[derive(segue::Plain)]
#[repr(C)]
struct Row<T> {
    key: T,
}

fn main() {}
