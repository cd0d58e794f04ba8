//! What the command prints on standard output, and what happens when nobody reads it.
//!
//! std's `println!` panics when its pipe is closed. Here that is an error like any other, which
//! [`main`](crate::main) takes as a wish to end: `segue build kv | head -1`.

use std::io;

/// Prints a line on standard output; the error is the caller's to return.
macro_rules! outln {
    ($($arg:tt)*) => {{
        let mut out = std::io::stdout();
        std::io::Write::write_fmt(&mut out, format_args!("{}\n", format_args!($($arg)*)))
    }};
}
pub(crate) use outln;

/// Prints data as JSON.
pub fn print_json<T: serde::Serialize + ?Sized>(data: &T) -> anyhow::Result<()> {
    outln!("{}", serde_json::to_string_pretty(data)?)?;
    Ok(())
}

/// Whether an error means that nobody reads standard output any more.
pub fn is_closed(error: &anyhow::Error) -> bool {
    // An error of the lab's has a broken pipe as its cause at most.
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
