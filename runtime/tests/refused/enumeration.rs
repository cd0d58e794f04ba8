#[derive(segue::Plain)]
#[repr(u8)]
enum Kind {
    One,
    Two,
}

fn main() {}
