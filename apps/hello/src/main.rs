//! The smallest app: says hello and ends, and with it the domain.
use segue as _;

fn main() {
    println!("hello from a unikernel");
}
