use segue::Plain;
use segue::preserved::{Offset, Region};

#[derive(Plain)]
#[repr(C)]
struct Row {
    key: u64,
    float: f32,
    field: [i16; 2],
    next: Offset<Row>,
}

#[derive(Plain)]
#[repr(transparent)]
struct Wrapped(Row);

#[derive(Plain)]
#[repr(C, align(64))]
struct Line {
    rows: [[u8; 8]; 8],
}

fn main() {
    let _ = Region::<[Row]>::take("rows", 1);
    let _ = Region::<Wrapped>::take("wrapped", 1);
    let _ = Region::<Line>::take("line", 1);
}
