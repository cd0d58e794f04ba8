use segue::preserved::Region;

fn main() {
    let _ = Region::<[String]>::take("texts", 1);
}
