#[derive(segue::Plain)]
struct Row {
    key: u64,
}

fn main() {}
